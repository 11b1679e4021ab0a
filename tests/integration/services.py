"""Real services for the tests: ``twistd`` processes that are started, asked over sockets, watched and ended.

Nothing here sleeps for a fixed time: :func:`until` polls a condition, and gives up loudly after a limit.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from twisted.internet.task import deferLater

from uwsgitwisted.errors import NoAnswer, UwsgiError
from uwsgitwisted.wire.events import Event
from uwsgitwisted.wire.objects import dumps, loads
from uwsgitwisted.wire.packet import HEADER_SIZE, MARSHAL, PING, Packet, PacketDecoder, encode_packet
from uwsgitwisted.wire.session import Role, Session
from uwsgitwisted.wire.terms import Terms

#: What runs ``twistd`` so that coverage of it is kept: it ends by the signal that it got, and what Python does
#: at its exit isn't done then.
_MEASURED = """
import atexit, sys
from twisted.application import app
from twisted.scripts.twistd import run
end = app._exitWithSignal
app._exitWithSignal = lambda number: (atexit._run_exitfuncs(), end(number))
sys.argv[0] = "twistd"
run()
"""
#: The script beside the interpreter, so that a virtual environment's own is run.
TWISTD: tuple[str, ...] = (str(Path(sys.executable).with_name("twistd")),)
if "COVERAGE_PROCESS_START" in os.environ or "COVERAGE_PROCESS_CONFIG" in os.environ:
    TWISTD = (sys.executable, "-c", _MEASURED)
#: The status with which ``twistd`` ends after SIGTERM: it sends the signal to itself when all is done.
TERMINATED = -signal.SIGTERM
#: Seconds for what takes well under one: this machine may be busy with other things.
PATIENCE = 20.0
_POLL_INTERVAL = 0.01


def until(condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    """Wait for *condition* to hold.

    :param what: what is waited for, for the error's text.
    :raises AssertionError: if it doesn't hold within *seconds*.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(_POLL_INTERVAL)


async def eventually(condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    """Wait for *condition* as :func:`until` does, while the tests' reactor runs."""
    from twisted.internet import reactor

    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        await deferLater(reactor, _POLL_INTERVAL)


def script(function: Callable[..., Any], *arguments: object) -> Any:
    """Call a blocking function as a script does: in a thread of its own, whose connections end with it.

    pytest-twisted's reactor runs in the main thread, where blocking calls are refused.
    """

    def call() -> tuple[Any, Exception | None]:
        try:
            return function(*arguments), None
        except UwsgiError as error:
            for each in (error, *getattr(error, "results", ())):
                if isinstance(each, UwsgiError):  # its frames would keep the thread's connections open
                    each.__context__ = each.__cause__ = each.__traceback__ = None
            return None, error

    with ThreadPoolExecutor(max_workers=1) as pool:
        result, failure = pool.submit(call).result()
    if failure is not None:
        raise failure
    return result


def _blocks() -> Iterator[range]:
    """Give blocks of ports that no other process of the tests uses until this one ends.

    A socket's name, which the system frees when its process ends, says that a block is taken. None of the ports
    is one that the system gives to outgoing connections.
    """
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    blocks = [range(start, start + _BLOCK) for start in range(10_000, max(first, 11_000) - _BLOCK, _BLOCK)]
    for block in random.sample(blocks, len(blocks)):
        mark = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            mark.bind(f"\0uwsgitwisted-tests-{block.start}")
        except OSError:
            mark.close()
            continue
        _marks.append(mark)
        yield block


#: How many ports a process takes at once.
_BLOCK = 100
_marks: list[socket.socket] = []
_ports = (port for block in _blocks() for port in block)


def free_port() -> int:
    """Return a TCP port on which nothing listens on loopback, and which nobody else is given.

    So nobody takes it before a service that was stopped starts again, or before a first start.
    """
    for port in _ports:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def process_state(pid: int) -> tuple[str, int]:
    """Return the state letter and the parent of a process; ``("", 0)`` if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return "", 0
    state, parent = text.rpartition(")")[2].split()[:2]
    return state, int(parent)


def is_alive(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    return process_state(pid)[0] not in ("", "Z", "X")


def children_of(pid: int) -> dict[int, str]:
    """Return the state letters of a process's children by their ids; a zombie's is ``Z``."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            state, parent = process_state(int(entry.name))
            if parent == pid:
                found[int(entry.name)] = state
    return found


class Service:
    """A running ``twistd`` process.

    :param command: its whole command line.
    :param directory: where it runs; its output goes to ``service.log`` there.
    :param address: where it can be asked.
    """

    def __init__(self, command: Sequence[str], directory: Path, address: Any) -> None:
        self.address = address
        self.directory = directory
        self._log_path = directory / "service.log"
        with self._log_path.open("ab") as output:
            self._log_start = output.tell()
            self.process = subprocess.Popen(
                command, cwd=directory, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

    @property
    def pid(self) -> int:
        """The process's id."""
        return self.process.pid

    @property
    def log(self) -> str:
        """Its output since its start."""
        with self._log_path.open("rb") as file:
            file.seek(self._log_start)
            return file.read().decode("utf-8", "replace")

    def wait_for(self, text: str, seconds: float = PATIENCE) -> None:
        """Wait until its log has *text*."""

        def said() -> bool:
            assert text in self.log or self.process.poll() is None, f"it ended:\n{self.log}"
            return text in self.log

        until(said, f"{text!r} in the log", seconds)

    def workers(self) -> list[int]:
        """Return the ids of its worker processes that live; between it and each of them is a reaper."""
        found: list[int] = []

        def each_has_forked() -> bool:
            reapers = [pid for pid, state in children_of(self.pid).items() if state != "Z"]
            workers = [children_of(reaper) for reaper in reapers]
            found[:] = [pid for below in workers for pid, state in below.items() if state != "Z"]
            return all(workers)

        until(each_has_forked, "a worker below each reaper")
        return sorted(found)

    def zombies(self) -> list[int]:
        """Return the ids of its children that nobody has waited for."""
        return sorted(pid for pid, state in children_of(self.pid).items() if state == "Z")

    def memory(self) -> int:
        """Return the resident memory of the front, in bytes."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize()

    def ask(self, message: object, modifier2: int = 17) -> Any:
        """Send an object in plain uwsgi and return the answer.

        :raises NoAnswer: if the connection ends without one.
        """
        answer = self.exchange(marshal_packet(message, modifier2))
        if not answer:
            raise NoAnswer(address=self.address)
        return loads(answer[HEADER_SIZE:])

    def connect(self, receive_buffer: int | None = None) -> socket.socket:
        """Return a connection to it, on which reading takes no longer than the tests' patience."""
        if isinstance(self.address, str):
            connection = socket.socket(socket.AF_UNIX)
            target: object = self.address.removeprefix("unix:")
        else:
            connection, target = socket.socket(), self.address
        if receive_buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.settimeout(PATIENCE)
        try:
            connection.connect(target)
        except BaseException:
            connection.close()
            raise
        return connection

    def exchange(self, data: bytes, *, end: bool = False) -> bytes:
        """Send bytes on a connection of their own and return what comes back until it is closed.

        :param end: whether to close the sending side behind them.
        """
        with self.connect() as connection:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may refuse before the end
                connection.sendall(data)
                if end:
                    connection.shutdown(socket.SHUT_WR)
            return read_to_end(connection)

    def terminate(self, seconds: float = PATIENCE) -> int:
        """End it as an init system does: SIGTERM, and SIGKILL if that takes too long; return its status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        """End it as a power cut does, and wait until its workers are gone too."""
        workers = self.workers()
        self.process.kill()
        self.process.wait(PATIENCE)
        until(lambda: not any(map(is_alive, workers)), f"the end of the workers {workers}")


class Launcher:
    """Starts services in directories of their own and ends all of them.

    :param directory: where those directories are made.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._directories = 0
        self._services: list[Service] = []

    def new_directory(self) -> Path:
        """Make a directory for a service."""
        directory = self._directory / f"s{self._directories}"
        self._directories += 1
        directory.mkdir()
        return directory

    def start(
        self,
        command: str,
        *options: str,
        handler: str | None = None,
        tcp: bool = False,
        directory: Path | None = None,
        twistd: Sequence[str] = TWISTD,
    ) -> Service:
        """Start ``twistd -n COMMAND`` and wait until it takes requests.

        :param options: its options besides ``--listen`` and ``--handler``.
        :param handler: the source of its handler module.
        :param tcp: whether it listens on a TCP port of loopback; otherwise on a UNIX socket.
        :param directory: where it runs; None for a new directory.
        :param twistd: what runs it.
        """
        if directory is None:
            directory = self.new_directory()
        port = free_port()
        address: Any = ("127.0.0.1", port) if tcp else f"unix:{directory}/socket"
        listen = f"tcp:{port}" if tcp else str(address)
        line = [*twistd, "-n", "--pidfile=", command, "--listen", listen, "--node", "here", *options]
        if handler is not None:
            (directory / "my_handler.py").write_text(handler)
            line += ["--handler", "my_handler"]
        service = Service(line, directory, address)
        self._services.append(service)
        service.wait_for("takes requests on")
        return service

    def run(self, line: Sequence[str], address: Any) -> Service:
        """Start any service, and wait until it takes requests.

        :param line: the command.
        :param address: where it listens.
        """
        service = Service(list(line), self.new_directory(), address)
        self._services.append(service)
        service.wait_for("takes requests on")
        return service

    def start_application(self, source: str, address: Any, **modules: str) -> Service:
        """Start ``twistd`` with an application file, and wait until it takes requests.

        :param source: what is in that file.
        :param address: where its service listens.
        :param modules: the sources of modules beside it, by their names.
        """
        directory = self.new_directory()
        (directory / "application.tac").write_text(source)
        for name, text in modules.items():
            (directory / f"{name}.py").write_text(text)
        service = Service([*TWISTD, "-n", "--pidfile=", "-y", "application.tac"], directory, address)
        self._services.append(service)
        service.wait_for("takes requests on")
        return service

    def end_all(self) -> None:
        """End all running services; try every one, then raise the first error."""
        with contextlib.ExitStack() as stack:
            for service in self._services:
                stack.callback(service.terminate)


@contextlib.contextmanager
def launcher(directory: Path) -> Iterator[Launcher]:
    """Give a launcher whose services are ended whatever happens."""
    launched = Launcher(directory)
    try:
        yield launched
    finally:
        launched.end_all()


def read_to_end(connection: socket.socket) -> bytes:
    """Return the bytes until the peer closes or resets the connection."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(65_536):
            received += data
    return received


def read_stats(address: Any) -> dict[str, Any]:
    """Return the statistics that are given at an address."""
    with socket.socket(socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE)
        connection.connect(address)
        found: dict[str, Any] = json.loads(read_to_end(connection))
        return found


def marshal_packet(message: object, modifier2: int = 17) -> bytes:
    """Return the bytes of a request with an object."""
    return encode_packet(Packet(MARSHAL, modifier2, dumps(message)))


class RawSession:
    """A session over a blocking socket, which takes every byte and breaks every rule that it is told to.

    :param service: whom to ask for it.
    :param receive_buffer: how much the kernel holds of what isn't read, in bytes.
    :param window: how many bytes of a stream it accepts ahead; 0 for no streams.
    """

    def __init__(self, service: Service, receive_buffer: int | None = None, window: int = 0) -> None:
        self.connection = service.connect(receive_buffer)
        ours = Terms(max_message=1 << 30, window=window)
        self.connection.sendall(encode_packet(Packet(PING, 0, ours.encode())))
        self.granted, behind = self._read_terms()
        self.session = Session(Role.CLIENT, ours, Terms(max_message=1 << 30))
        self._early = self.session.receive(behind)

    def _read_terms(self) -> tuple[Terms, bytes]:
        decoder = PacketDecoder(count=1)
        packets: list[Packet] = []
        while not packets:
            data = self.connection.recv(HEADER_SIZE + 65_535)
            assert data, "no session was granted"
            packets = decoder.receive(data)
        terms = Terms.decode(packets[0].payload)
        assert terms is not None, "no session was granted"
        return terms, decoder.rest()

    def ask(self, request: int, message: object) -> None:
        """Send an object under an id of the caller's choice."""
        self.session.send_request(request, Packet(MARSHAL, 17, dumps(message)))
        self.flush()

    def flush(self) -> None:
        """Send what is queued."""
        while data := self.session.data_to_send():
            self.connection.sendall(data)

    def events(self) -> list[Event]:
        """Return the events of the next bytes; none if the connection is closed."""
        if self._early:
            early, self._early = self._early, []
            return early
        while data := self.connection.recv(65_536):
            if events := self.session.receive(data):
                return events
        return []

    def close(self) -> None:
        """Drop the connection."""
        self.connection.close()


def run_to_end(
    command: Sequence[str], directory: Path, seconds: float = PATIENCE
) -> subprocess.CompletedProcess[str]:
    """Run a command that ends by itself and return its status and output."""
    return subprocess.run(
        command, cwd=directory, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds
    )


def kill_if_alive(pid: int) -> None:
    """End one process that a test started indirectly, if it is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
