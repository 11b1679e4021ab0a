"""A node that is composed: several loaders in one worker, behind one port."""

from __future__ import annotations

import pytest
import pytest_twisted

from tests.integration.services import Launcher, Service, free_port, script
from uwsgitwisted import blocking
from uwsgitwisted.client import Client
from uwsgitwisted.wire.array import encode_array
from uwsgitwisted.wire.packet import RPC, Packet, PacketDecoder, encode_packet
from uwsgitwisted.wire.rpc import RPC_HTTP, RPC_RAW

pytestmark = pytest.mark.integration

#: What answers objects.
OBJECTS = """
import os, uwsgi
uwsgi.message_manager_marshal = lambda message, modifier2: [message, os.getpid()]
"""
#: What answers calls: with their bytes, and the process that runs them.
CALLS = """
import os
from uwsgitwisted.wire.packet import Packet
from uwsgitwisted.worker.handlers.handler import Handler

def answer(request, value):
    return Packet(173, request.modifier2, value)

def load(greeting):
    def run(request):
        return b"%sfrom %d: %s" % (greeting.encode(), os.getpid(), request.payload)
    return {173: Handler(run, answer)}
"""
#: What twistd runs.
NODE = """
from twisted.application.service import Application
from twisted.internet import reactor

from uwsgitwisted.responders.forward import ForwardResponder
from uwsgitwisted.services.server import ServerService, check_handlers
from uwsgitwisted.services.settings import ServerSettings
from uwsgitwisted.worker.spec import Loader

settings = ServerSettings(listen=("tcp:%d:interface=127.0.0.1",), engine="processes:1", node="here")
spec = settings.worker_spec(
    Loader("uwsgitwisted.worker.handlers.marshal:load", {"module": "my_handler"}),
    Loader("my_calls:load", {"greeting": "hello " * 10}),
)
check_handlers(spec)
engine = settings.make_engine(reactor, spec)
responders = {modifier1: ForwardResponder(engine) for modifier1 in (33, 173)}
application = Application("node")
ServerService(reactor, settings, engine, responders).setServiceParent(application)
"""


@pytest.fixture(scope="module")
def node(shared: Launcher) -> Service:
    """Give a node whose one worker answers objects and calls."""
    port = free_port()
    return shared.start_application(NODE % port, ("127.0.0.1", port), my_handler=OBJECTS, my_calls=CALLS)


def test_one_worker_answers_both(node: Service) -> None:
    """Both kinds of requests are answered on one port, in the same process."""
    message, pid = script(blocking.send_message, node.address, 33, 17, {"k": 1})
    assert message == {"k": 1}
    assert node.workers() == [pid]
    call = script(blocking.send_message, node.address, 173, 0, ["sum"])
    assert call == b"%sfrom %d: %s" % (b"hello " * 10, pid, encode_array(["sum"]))


@pytest.mark.parametrize("modifier2", [RPC_RAW, RPC_HTTP])
def test_raw_answers(node: Service, modifier2: int) -> None:
    """Where plain uwsgi answers with bytes up to the end of the connection, so does a worker, at any length."""
    for argument in ("x", "x" * 65_500):  # with its greeting, the longer answer would fit in no packet
        request = encode_array([argument])
        answer = node.exchange(encode_packet(Packet(RPC, modifier2, request)))
        assert answer.startswith(b"hello hello ")
        assert answer.endswith(request)


def test_framed_answers(node: Service) -> None:
    """Any other answer to a plain peer has its header."""
    answer = node.exchange(encode_packet(Packet(RPC, 0, b"x")))
    (packet,) = PacketDecoder(count=1).receive(answer)
    assert (packet.modifier1, packet.modifier2) == (RPC, 0)
    assert packet.payload.endswith(b": x")


@pytest_twisted.ensureDeferred
async def test_raw_answers_in_a_session(node: Service, client: Client) -> None:
    """In a session the same answer is a packet, whose payload the caller gets."""
    assert (await client.send_message(node.address, RPC, RPC_RAW, b"x")).endswith(b": x")
    assert script(blocking.send_message, node.address, RPC, RPC_RAW, b"x").endswith(b": x")
