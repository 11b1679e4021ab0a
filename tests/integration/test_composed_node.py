"""A node that is composed: several loaders in one worker, behind one port."""

from __future__ import annotations

import pytest

from tests.integration.services import Launcher, Service, free_port, script
from uwsgitwisted import blocking
from uwsgitwisted.wire.array import encode_array

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
        return b"%s from %d: %s" % (greeting.encode(), os.getpid(), request.payload)
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
    Loader("my_calls:load", {"greeting": "hello"}),
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
    assert call == b"hello from %d: %s" % (pid, encode_array(["sum"]))
