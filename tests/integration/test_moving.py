"""Moving from uWSGI, as docs/moving.md and ``uwsgitwisted convert`` say."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.real_uwsgi import UWSGI
from tests.integration.services import PATIENCE, TWISTD, Service, free_port, until
from uwsgitwisted.wire.packet import Packet, encode_packet
from uwsgitwisted.wire.vars import encode_vars

pytestmark = [pytest.mark.integration, pytest.mark.needs("uwsgi")]

#: An application that spools with uwsgidecorators, and answers with what its configuration has set.
APPLICATION = """
import os, uwsgi
from uwsgidecorators import spool

@spool
def note(task):
    get = lambda key: task.get(key) or task.get(key.encode())
    with open(os.environ["NOTES"], "a") as file:
        file.write(f"{get('name')!r}\\n")

def application(environ, start_response):
    name = environ["QUERY_STRING"]
    note.spool({b"name": name.encode()}) if uwsgi.version else None
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{os.getcwd()} {os.environ['COLOUR']} {name}".encode()]
"""

CONFIGURATION = """\
[base]
project = %d
[uwsgi]
ini = :base
chdir = %(project)src
wsgi-file = app.py
master = true
die-on-term = true
vacuum = true
processes = 2
harakiri = 20
max-requests = 1000
socket = %(project)socket
chmod-socket = 660
buffer-size = 32768
spooler = %(project)spool
spooler-frequency = 1
env = NOTES=%(project)notes
env = COLOUR=@(%dcolour)
disable-logging = true
"""


def ask(path: Path, query: str) -> bytes:
    """Send a web request to a UNIX socket, and return the answer's body."""
    variables = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": "/",
        "QUERY_STRING": query,
        "SERVER_PROTOCOL": "HTTP/1.1",
    }
    variables |= {"SERVER_NAME": "x", "SERVER_PORT": "80", "SCRIPT_NAME": "", "REQUEST_URI": f"/?{query}"}
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE)
        connection.connect(str(path))
        connection.sendall(encode_packet(Packet(0, 0, encode_vars(variables))))
        answer = b""
        while data := connection.recv(65_536):
            answer += data
    return answer.partition(b"\r\n\r\n")[2]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in ("src", "spool"):
        (tmp_path / name).mkdir()
    (tmp_path / "src" / "app.py").write_text(APPLICATION)
    (tmp_path / "colour").write_text("green\n")
    (tmp_path / "app.ini").write_text(CONFIGURATION)
    return tmp_path


def convert(directory: Path, name: str = "app.ini") -> dict[str, Any]:
    """Run ``uwsgitwisted convert``, which has to refuse nothing."""
    command = [sys.executable, "-m", "uwsgitwisted", "convert", "--json", str(directory / name)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert run.returncode == 0, run.stdout + run.stderr
    document: dict[str, Any] = json.loads(run.stdout)
    return document


def start(directory: Path, number: int, command: dict[str, Any]) -> Service:
    """Start a converted command: our ``twistd`` with the arguments that were printed."""
    place = directory / f"log{number}"
    place.mkdir()
    environment = [f"{name}={value}" for name, value in command["environment"].items()]
    return Service(
        ["env", "-C", command["directory"], *environment, *TWISTD, *command["command"][1:]], place, None
    )


def notes(directory: Path) -> list[str]:
    try:
        return (directory / "notes").read_text().splitlines()
    except FileNotFoundError:
        return []


def test_converted_commands_do_the_same(project: Path) -> None:
    """The real uWSGI, and then what its configuration is converted to, answer a request and run its task."""
    with (project / "uwsgi.log").open("wb") as log:
        real = subprocess.Popen([UWSGI, "--ini", "app.ini"], cwd=project, stdout=log, stderr=log)
    try:
        until(lambda: b"spawned uWSGI worker 2" in (project / "uwsgi.log").read_bytes(), "uWSGI's workers")
        theirs = ask(project / "socket", "theirs")
        until(lambda: len(notes(project)) == 1, "uWSGI's task")
    finally:
        real.terminate()
        real.wait(PATIENCE)
    port = free_port()
    document = convert(project)
    services = [
        start(project, number, json.loads(json.dumps(command).replace("3034", str(port))))
        for number, command in enumerate(document["commands"])
    ]
    try:
        for service in services:
            service.wait_for("takes requests on")
        assert ask(project / "socket", "ours") == theirs.replace(b"theirs", b"ours")
        until(lambda: len(notes(project)) == 2, "our task")
    finally:
        for service in services:
            service.terminate()
    assert theirs == f"{project}/src green theirs".encode()
    assert notes(project) == ["'theirs'", "'ours'"]
