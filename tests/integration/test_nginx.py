"""Tasks over HTTP: from browsers by way of a real nginx to a spooler."""

from __future__ import annotations

import hashlib
import json
import resource
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.integration.nginx import Nginx, Response
from tests.integration.services import PATIENCE, Launcher, Service, until
from uwsgitwisted.wire.packet import ANSWER, SPOOL, Packet, PacketDecoder, encode_packet
from uwsgitwisted.wire.vars import encode_vars

pytestmark = [pytest.mark.integration, pytest.mark.needs("nginx")]

#: A spooler function that returns what it got.
HANDLER = """
import hashlib, uwsgi

def run(task):
    del task["spooler_task_name"]
    body = task.pop("body", b"")
    variables = {key.decode(): value.decode("latin-1") for key, value in task.items()}
    return {"variables": variables, "size": len(body), "digest": hashlib.sha256(body).hexdigest()}

uwsgi.spooler = run
"""

#: What is behind each path: tasks as the documentation has them; with what a configuration may set besides; and
#: with bodies that nginx passes on as they come.
LOCATIONS = """
        include /etc/nginx/uwsgi_params;
        uwsgi_modifier1 17;
        uwsgi_modifier2 1;
        location / {{ uwsgi_pass {address}; }}
        location /set {{
            include /etc/nginx/uwsgi_params;
            uwsgi_param at $arg_at;
            uwsgi_param priority $arg_priority;
            uwsgi_param spooler web;
            uwsgi_pass {address};
        }}
        location /stream {{ uwsgi_request_buffering off; uwsgi_pass {address}; }}
"""

MAX_MESSAGE = 1 << 20


def _start(launch: Launcher, *options: str) -> Service:
    return launch.start(
        "uwsgi-spooler",
        *("--engine", "processes:1", "--spool", "sqlite:spool.db", "--max-message", str(MAX_MESSAGE)),
        *options,
        handler=HANDLER,
    )


def _in_front_of(service: Service, directory: Path) -> Nginx:
    directory.mkdir()
    return Nginx(directory, LOCATIONS.format(address=service.address))


@pytest.fixture(scope="module")
def spooler(shared: Launcher) -> Service:
    """A spooler for tests that leave nothing behind."""
    return _start(shared, "--http-vars", "REQUEST_METHOD,QUERY_STRING,CONTENT_TYPE,HTTP_X_WANTED")


@pytest.fixture(scope="module")
def nginx(spooler: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    """An nginx in front of it."""
    running = _in_front_of(spooler, tmp_path_factory.mktemp("n") / "nginx")
    yield running
    running.stop()


def _told(response: Response) -> Any:
    assert response.headers["Content-Type"] == "application/json"
    return json.loads(response.body)


def _outcome(nginx: Nginx, accepted: Response) -> Any:
    """Wait until an accepted task is done, and return its result."""
    assert accepted.status == 202, accepted.body
    location = accepted.headers["Location"]
    assert location.endswith(f"/{_told(accepted)['id']}")
    until(lambda: _told(nginx.ask("GET", location))["state"] == "done", "the end of the task")
    return _told(nginx.ask("GET", location))["result"]


@pytest.mark.parametrize(("method", "path"), [("POST", "/tasks"), ("PUT", "/set/x/"), ("POST", "/stream/y")])
@pytest.mark.parametrize("size", [0, 1, 200_000])
def test_a_task(nginx: Nginx, method: str, path: str, size: int) -> None:
    """A request's body becomes a task, whose state and result are at its Location."""
    body = bytes(range(256)) * (size // 256 + 1)
    body = body[:size]
    accepted = nginx.ask(method, f"{path}?to=ann", body, {"Content-Type": "text/x-letter"})
    assert accepted.headers["Location"].startswith(path.rstrip("/") + "/")
    assert _told(accepted)["state"] in ("ready", "running", "done")
    result = _outcome(nginx, accepted)
    assert (result["size"], result["digest"]) == (size, hashlib.sha256(body).hexdigest())
    told = {key: result["variables"][key] for key in ("REQUEST_METHOD", "QUERY_STRING", "CONTENT_TYPE")}
    assert told == {"REQUEST_METHOD": method, "QUERY_STRING": "to=ann", "CONTENT_TYPE": "text/x-letter"}


@pytest.mark.parametrize("path", ["/tasks", "/stream"])
def test_chunks(nginx: Nginx, path: str) -> None:
    """A body without a known size arrives whole."""
    pieces = [bytes([number]) * 20_000 for number in range(10)]
    result = _outcome(nginx, nginx.ask("POST", path, iter(pieces)))
    assert result["digest"] == hashlib.sha256(b"".join(pieces)).hexdigest()


def test_what_a_browser_sends(nginx: Nginx) -> None:
    """The task gets only listed variables from a browser, which can't decide when and where it runs."""
    sent = {
        "X-Wanted": "yes",
        "at": "4000000000",
        "spooler": "evil",
        "Priority": "-5",
        "Cookie": "secret",
        "UWSGI_FILE": "/etc/passwd",
        "CONTENT_LENGTH": "7",
        "HTTP_AT": "4000000000",
        "Content-Type": "a/b",
    }
    result = _outcome(nginx, nginx.ask("POST", "/tasks?at=4000000000", b"body", sent))
    assert result["size"] == 4
    assert result["variables"] == {
        "REQUEST_METHOD": "POST",
        "QUERY_STRING": "at=4000000000",
        "CONTENT_TYPE": "a/b",
        "HTTP_X_WANTED": "yes",
    }


def test_a_body_of_any_size_leaves_the_variables(nginx: Nginx) -> None:
    """No size of a body makes variables of nginx's part of the body."""
    for size in range(150, 400):
        accepted = nginx.ask("POST", "/set?at=4000000000", bytes(size))
        assert accepted.status == 202
        task = _told(nginx.ask("GET", accepted.headers["Location"]))
        assert (task["queue"], task["at"]) == ("web", 4_000_000_000)


def test_what_nginx_sets(nginx: Nginx) -> None:
    """What uwsgi_param sets tells the spooler when to run the task, and in which queue."""
    accepted = nginx.ask("POST", "/set?at=4000000000&priority=3")
    assert _told(accepted)["state"] == "scheduled"
    task = _told(nginx.ask("GET", accepted.headers["Location"]))
    assert (task["at"], task["queue"], task["started"]) == (4_000_000_000, "web", None)


def test_the_same_key_twice(nginx: Nginx) -> None:
    """Two requests with the same Idempotency-Key are one task."""
    answers = [nginx.ask("POST", "/tasks", b"pay", {"Idempotency-Key": "order 17"}) for _ in range(2)]
    assert len({_told(answer)["id"] for answer in answers}) == 1


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/set?priority=../escaped", 400),
        ("POST", "/set?at=tomorrow", 400),
        ("GET", "/tasks/999999999", 404),
        ("GET", "/tasks", 404),
        ("DELETE", "/tasks/1", 405),
        ("OPTIONS", "/tasks", 405),
    ],
)
def test_refusals(nginx: Nginx, method: str, path: str, status: int) -> None:
    """A failure is answered with its reason, in JSON."""
    answer = nginx.ask(method, path)
    assert answer.status == status
    assert _told(answer)["error"]
    assert (answer.headers["Allow"] == "GET, HEAD, POST, PUT") is (status == 405)


@pytest.mark.parametrize("path", ["/tasks", "/stream"])
@pytest.mark.parametrize("size", [MAX_MESSAGE, 10 * MAX_MESSAGE])
def test_too_large(nginx: Nginx, path: str, size: int) -> None:
    """A body over --max-message is answered with 413, also while it is still coming."""
    answer = nginx.ask("POST", path, bytes(size))
    assert answer.status == 413
    assert "--max-message" in _told(answer)["error"]


def test_head(nginx: Nginx) -> None:
    """A HEAD tells whether there is a task, without a body."""
    location = nginx.ask("POST", "/tasks").headers["Location"]
    there, gone = nginx.ask("HEAD", location), nginx.ask("HEAD", "/tasks/999999999")
    assert (there.status, there.body) == (200, b"")
    assert (gone.status, gone.body) == (404, b"")


@pytest.mark.parametrize("path", ["/a%0d%0aSet-Cookie:%20b", "/caf%C3%A9/%7f", "//evil.example/x"])
def test_paths(nginx: Nginx, path: str) -> None:
    """No path puts a line into the answer, or another host into its Location."""
    accepted = nginx.ask("POST", path)
    assert accepted.status == 202
    assert accepted.headers["Set-Cookie"] is None
    location = accepted.headers["Location"]
    assert location.startswith("/")
    assert not location.startswith("//")
    assert location.isascii()


def test_a_full_disk(launch: Launcher, tmp_path: Path) -> None:
    """While the disk is full a task is answered with 503; it is accepted when there is room again."""
    service = _start(launch)
    front = _in_front_of(service, tmp_path / "nginx")
    try:
        resource.prlimit(service.pid, resource.RLIMIT_FSIZE, (1 << 16, resource.RLIM_INFINITY))
        answer = front.ask("PUT", "/tasks", bytes(200_000))
        assert answer.status == 503
        assert int(answer.headers["Retry-After"]) > 0
        assert "spool.db" not in answer.body.decode()
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(service.pid, resource.RLIMIT_FSIZE, unlimited)
        assert _outcome(front, front.ask("PUT", "/tasks", bytes(200_000)))["size"] == 200_000
    finally:
        front.stop()


def test_a_spooler_that_is_gone(launch: Launcher, tmp_path: Path) -> None:
    """Without a spooler, nginx answers with an error; no task looks accepted."""
    service = _start(launch)
    front = _in_front_of(service, tmp_path / "nginx")
    try:
        service.terminate()
        assert front.ask("POST", "/tasks", b"body").status == 502
    finally:
        front.stop()


def test_a_body_without_nginx(spooler: Service, nginx: Nginx) -> None:
    """A plain uwsgi client can send a body after its packet too, and gets the task's id."""
    body = bytes(200_000)
    block = encode_vars({"to": "ann", "CONTENT_LENGTH": len(body)})
    answer = spooler.exchange(encode_packet(Packet(SPOOL, 2, block)) + body)
    (packet,) = PacketDecoder().receive(answer)
    assert packet[:2] == (ANSWER, 1)
    location = f"/{int(packet.payload)}"
    until(lambda: _told(nginx.ask("GET", location))["state"] == "done", "the end of the task")
    result = _told(nginx.ask("GET", location))["result"]
    assert (result["variables"], result["size"]) == ({"to": "ann"}, len(body))


@pytest.mark.parametrize("modifier2", [1, 2])
def test_a_body_that_ends_early(spooler: Service, modifier2: int) -> None:
    """A request that is cut off in the middle of its body enqueues no task."""
    block = encode_vars({"REQUEST_METHOD": "POST", "CONTENT_LENGTH": 100})
    with closing(spooler.connect()) as connection:
        connection.sendall(encode_packet(Packet(SPOOL, modifier2, block)) + bytes(99))
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(PATIENCE)
        assert connection.recv(100) == b""
