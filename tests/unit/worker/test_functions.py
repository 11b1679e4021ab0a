"""The functions that a module registers, the node's handler of calls, and uWSGI's calls."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from tests.unit.servers import (
    ScriptedServer,
    answering,
    closed_port,
    frame,
    plain_peers,  # noqa: F401 - a fixture
)
from tests.unit.worker.test_handlers import Write, write  # noqa: F401 - a fixture
from uwsgitwisted.errors import MisuseError, RemoteError, StartupError, UnencodableMessage, UnknownFunction
from uwsgitwisted.wire.array import encode_array
from uwsgitwisted.wire.packet import RPC, Packet
from uwsgitwisted.worker.compat import functions, uwsgi, uwsgidecorators
from uwsgitwisted.worker.compat.signals import forget_all
from uwsgitwisted.worker.handlers import rpc as rpc_handler


@pytest.fixture(autouse=True)
def _no_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start with no registered function."""
    monkeypatch.setattr(functions, "_functions", {})


def join(*arguments: bytes) -> bytes:
    """Join the arguments."""
    return b"|".join(arguments)


def boom() -> None:
    """Raise."""
    raise KeyError("missing")


def _call(*items: str) -> Packet:
    return Packet(RPC, 0, encode_array(items))


class TestRegister:
    def test_list(self) -> None:
        """The names are bytes, in the order in which they came."""
        assert uwsgi.rpc_list() == ()
        assert uwsgi.register_rpc("join", join) is True
        assert uwsgi.register_rpc(b"boom", boom, 2) is True
        assert uwsgi.register_rpc("join", boom) is True
        assert uwsgi.rpc_list() == (b"join", b"boom")

    def test_decorator(self) -> None:
        """The decorator registers a function, and leaves it as it is."""
        assert uwsgidecorators.rpc("named")(join) is join
        assert uwsgi.rpc(None, "named", "a", "b") == b"a|b"

    @pytest.mark.parametrize("name", ["", "a\0b", "n" * 256, b""])
    def test_names(self, name: str | bytes) -> None:
        """A name that no caller could send is refused."""
        with pytest.raises(UnencodableMessage, match="can't be a function's name"):
            uwsgi.register_rpc(name, join)

    def test_no_function(self) -> None:
        """So is what can't be called."""
        with pytest.raises(MisuseError, match=r"register_rpc\('f'\): NoneType can't be called"):
            uwsgi.register_rpc("f", None)  # type: ignore[arg-type]


class TestHandler:
    handler = rpc_handler._table()[RPC]

    def test_call(self) -> None:
        """A function gets bytes; its result is the answer."""
        uwsgi.register_rpc("join", join)
        assert self.handler(_call("join", "a", "b")) == Packet(RPC, 0, b"a|b")

    def test_unknown(self) -> None:
        """The error of an unknown function has its name and those of the registered ones, up to twenty."""
        with pytest.raises(UnknownFunction, match="no RPC function is called 'f'; registered are: none"):
            self.handler(_call("f"))
        for number in range(25):
            uwsgi.register_rpc(f"f{number:02}", join)
        with pytest.raises(UnknownFunction, match=r"'f'; registered are: f00, .*, f19 and 5 more$"):
            self.handler(_call("f"))

    @pytest.mark.parametrize("function", [boom, lambda: 1, lambda _: b""])
    def test_failures(self, function: object) -> None:
        """A function that raises, takes other arguments, or returns something else, has failed."""
        uwsgi.register_rpc("f", function)  # type: ignore[arg-type]
        with pytest.raises(RemoteError, match=r"KeyError|UnencodableMessage|TypeError"):
            self.handler(_call("f"))


class TestLoad:
    OBJECTS = "import uwsgi\nuwsgi.message_manager_marshal = lambda message, modifier2: message\n"
    FUNCTIONS = "import uwsgi\nuwsgi.register_rpc('f', lambda: b'x')\n"

    @pytest.mark.parametrize("source", [OBJECTS, FUNCTIONS, OBJECTS + FUNCTIONS])
    def test_either(self, write: Write, source: str) -> None:  # noqa: F811
        """A node's module answers objects, calls, or both."""
        write("either.py", source)
        assert set(rpc_handler.load_with_objects("either")) == {33, RPC}

    def test_neither(self, write: Write) -> None:  # noqa: F811
        """A module that does none of it is refused, and all ways are named."""
        forget_all()
        write("neither.py", "import uwsgi\n")
        with pytest.raises(StartupError) as caught:
            rpc_handler.load_with_objects("neither")
        assert str(caught.value) == (
            "the handler module 'neither' set no uwsgi.message_manager_marshal and registered no RPC function "
            "and registered no signal or function of a mule; set it to a function (object, modifier2) that "
            "returns the answer, or register one with uwsgi.register_rpc(name, function), or register one with "
            "uwsgi.register_signal, or a decorator such as @timer"
        )

    def test_functions_only(self, write: Write) -> None:  # noqa: F811
        """A composed worker may have the calls alone; then a module without functions is refused."""
        write("only.py", self.FUNCTIONS)
        assert list(rpc_handler.load("only")) == [RPC]
        functions._functions.clear()
        write("none.py", self.OBJECTS)
        with pytest.raises(StartupError, match="'none' registered no RPC function; register one with"):
            rpc_handler.load("none")


@pytest.fixture(name="peers")
def _peers(plain_peers: None, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Be a process without a reactor, whose peers speak plain uwsgi."""
    monkeypatch.delitem(sys.modules, "twisted.internet.reactor", raising=False)


class TestCalls:
    @pytest.mark.parametrize("node", [None, "", b""])
    def test_here(self, node: str | bytes | None) -> None:
        """Without a node, a function of this process is called; its arguments may be empty."""
        uwsgi.register_rpc("join", join)
        assert uwsgi.rpc(node, b"join", b"a", "", 3) == b"a||3"
        assert uwsgi.call(b"join", b"a", "b") == uwsgi.call("join", b"a", "b") == b"a|b"

    @pytest.mark.parametrize("result", [None, "", b""])
    def test_nothing(self, result: object) -> None:
        """As in uWSGI, an empty result is None."""
        uwsgi.register_rpc("f", lambda: result)
        assert uwsgi.call("f") is None

    def test_failures_here(self, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
        """A failure is logged, and gives None."""
        uwsgi.register_rpc("boom", boom)
        with caplog.at_level(logging.WARNING):
            assert uwsgi.call("boom") is None
            assert uwsgi.call("nope") is None
        assert "KeyError: 'missing'" in capfd.readouterr().err
        assert "uwsgi.rpc: UnknownFunction: no RPC function is called 'nope'" in caplog.text

    @pytest.mark.integration
    def test_there(self, peers: None) -> None:
        """With a node, its function is called, whichever way it is written."""
        with ScriptedServer(answering(frame(RPC, 0, b"x"))) as server:
            node = f"127.0.0.1:{server.port}"
            assert uwsgi.rpc(node, "f", "a") == uwsgi.rpc(node.encode(), b"f", b"a") == b"x"
            assert uwsgi.call(f"f@{node}", "a") == uwsgi.call(f"f@{node}".encode(), b"a") == b"x"

    @pytest.mark.integration
    def test_failures_there(self, peers: None, caplog: pytest.LogCaptureFixture) -> None:
        """A node that fails gives None and a line in the log, and so does an empty result."""
        with caplog.at_level(logging.WARNING):
            assert uwsgi.rpc(f"127.0.0.1:{closed_port()}", "f") is None
        assert "uwsgi.rpc: ConnectionFailed: 127.0.0.1:" in caplog.text
        with ScriptedServer(answering(frame(RPC, 0))) as server:
            assert uwsgi.rpc(f"127.0.0.1:{server.port}", "f") is None

    @pytest.mark.parametrize(
        ("items", "reason"),
        [
            (("f", "a", ""), "item 2 is empty"),
            (("f", bytes(65_536)), "65536 bytes"),
            (("f", *["x"] * 255), "255 arguments"),
            (("f", None), "NoneType"),
            (("f" * 256,), "can't be a function's name"),
        ],
    )
    def test_misuse(self, peers: None, items: tuple[str, ...], reason: str) -> None:
        """What can't be sent raises a ValueError, as uWSGI does, before anything is sent."""
        with pytest.raises(ValueError, match=reason):
            uwsgi.rpc(f"127.0.0.1:{closed_port()}", *items)


def test_an_address_that_is_none(peers: None, tmp_path: Path) -> None:
    """So does a node that is no address."""
    with pytest.raises(MisuseError):
        uwsgi.rpc("nonsense", "f")
