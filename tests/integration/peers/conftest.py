"""A real uWSGI and our services with the same code, for all tests here that compare them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.real_uwsgi import real_web_server
from tests.integration.services import Launcher, free_port, launcher

#: What both run. It imports nothing of ours.
CODE = """
import json, uwsgi

def length(*arguments):
    return b"%d" % sum(map(len, arguments))

def big(size):
    return b"x" * int(size)

def show(*arguments):
    return json.dumps([each.decode("latin-1") for each in arguments]).encode()

for function in (length, big, show):
    uwsgi.register_rpc(function.__name__, function)

def spooler(task):
    return uwsgi.SPOOL_OK

uwsgi.spooler = spooler

def call(node, name, size):
    argument = b"x" * size if name == "length" else b"%d" % size
    result = uwsgi.rpc(node.encode(), name.encode(), argument)
    return None if result is None else result.decode()

def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    query = environ.get("QUERY_STRING", "")
    name, _, size = environ["PATH_INFO"][1:].partition("/")
    if name == "call":
        return [json.dumps(call(*json.loads(query))).encode()]
    if name == "show":
        texts = {key: value for key, value in environ.items() if isinstance(value, str)}
        return [json.dumps(texts).encode()]
    return [b"%d" % len(query) if name == "length" else b"x" * int(size)]
"""


@dataclass(frozen=True)
class Servers:
    """Where the servers are.

    :param node: that of web requests, RPC and pings.
    :param spooler: that of tasks.
    """

    node: Any
    spooler: Any


@pytest.fixture(scope="package")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Our node and spooler."""
    with launcher(tmp_path_factory.mktemp("ours")) as launch:
        yield _start_ours(launch)


def _start_ours(launch: Launcher) -> Servers:
    directory = launch.new_directory()
    (directory / "code_of_both.py").write_text(CODE)
    node = launch.start(
        *("uwsgi-node", "--engine", "processes:1", "--handler", "code_of_both"),
        *("--wsgi", "code_of_both:application"),
        tcp=True,
        directory=directory,
    )
    spool = ("--spool", "sqlite:tasks.sqlite", "--engine", "processes:1")
    spooler = launch.start("uwsgi-spooler", *spool, handler=CODE, tcp=True)
    return Servers(node.address, spooler.address)


@pytest.fixture(scope="package")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """A real uWSGI, which is both."""
    directory: Path = tmp_path_factory.mktemp("real")
    (directory / "code_of_both.py").write_text(CODE)
    (directory / "tasks").mkdir()
    port = free_port()
    options = ("--socket", f"127.0.0.1:{port}", "--spooler", str(directory / "tasks"))
    with real_web_server(directory, "code_of_both:application", *options):
        yield Servers(("127.0.0.1", port), ("127.0.0.1", port))
