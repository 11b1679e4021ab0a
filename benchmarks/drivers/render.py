"""Drivers of a renderer, and of Mako in one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.drivers.pace import in_flight, one_after_another, react

_HOST = "127.0.0.1"
#: How many requests are in flight.
_IN_FLIGHT = 50
#: The variables of the page.
VARIABLES = {"title": "Shop", "user": "Ann", "items": [f"item {number}" for number in range(20)]}
PAGE = "page.html"


def client(port: int, seconds: float, pages: str = "1") -> float:
    """Return the rate of pages per second from our Client.

    :param pages: how many one request asks for.
    """
    from uwsgitwisted.client import Client

    number = int(pages)
    message: Any = (PAGE, VARIABLES) if number == 1 else [(PAGE, VARIABLES)] * number

    async def main(reactor: Any) -> float:
        client = Client(reactor)
        address = (_HOST, port)
        rate = await in_flight(lambda: client.send_message(address, 33, 0, message), seconds, _IN_FLIGHT)
        await client.close()
        return rate * number

    rate: float = react(main)
    return rate


def lookup(_: int, seconds: float, directory: str) -> float:
    """Return the rate of pages per second that Mako renders in one process, from its own cached lookup."""
    from mako.lookup import TemplateLookup

    found = TemplateLookup([directory])
    return _rate(lambda: found.get_template(PAGE).render(**VARIABLES), seconds)


def anew(_: int, seconds: float, directory: str) -> float:
    """Return the rate of pages per second where each call compiles the template, as old code does."""
    from mako.lookup import TemplateLookup
    from mako.template import Template

    found = TemplateLookup([directory])

    def render() -> object:
        return Template(filename=f"{directory}/{PAGE}", uri=PAGE, lookup=found).render(**VARIABLES)

    return _rate(render, seconds)


def handler(_: int, seconds: float, directory: str) -> float:
    """Return the rate of requests per second of the handler alone, from bytes to bytes."""
    from uwsgitwisted.wire.objects import dumps
    from uwsgitwisted.wire.packet import MARSHAL, Packet
    from uwsgitwisted.worker.handlers.render import table
    from uwsgitwisted.worker.templates.renderer import Renderer, RenderSettings

    handle = table(Renderer(RenderSettings([directory])))[MARSHAL]
    request = Packet(MARSHAL, 0, dumps((PAGE, VARIABLES)))
    return _rate(lambda: handle(request), seconds)


def _rate(call: Callable[[], object], seconds: float) -> float:
    call()
    return one_after_another(call, seconds)
