"""Moving from uWSGI, as docs/moving.md and ``uwsgitwisted convert`` say."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.real_uwsgi import UWSGI
from tests.integration.services import PATIENCE, TWISTD, Service, free_port, until
from uwsgitwisted.convert.configuration import read_configuration
from uwsgitwisted.convert.outcomes import RULES, rule_of
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


#: Files that use all that uWSGI's own parsers know, and their oddities.
FILES = {
    "app.ini": """\
; a comment
# another one, with 100%%
[other]
processes = 99
[uwsgi]
base = /srv
chdir = %(base)/x
late = %(later)
later = %(base)
inside = a%(later)
nothing = %(missing) $(MISSING_VARIABLE) %()
nested = %(ba%(se))
env = A=$(FRUIT)
foo = @(secret)/@(empty)
names = %n|%s|%d|%c|%0|%1|%e|%k|%%|%v|%o|%p|%x|%j|%z|%h|%U|%u|%g|%G
twice = 1
  twice   =   2
spaced =\tvalue with = sign and ; no comment
calc = %(two two + 1) %(two * 4) %(two / 0) %(two ++) %(base - 5) %(base two) %(missing two) %(two - 7)
two = 2
inherit = base.ini
ini = base.ini:two
include = base.ini
ini = :three
vacuum
= 5
set = chosen=%(two)
set-ph = holder=%(two)
held = %(holder)
for = a b
print = x %(_)
endfor =
for-times = 2
print = n %(_)
end-for =
for-glob = *.xml
print = g %(_)
endfor =
for-readline = lines
print = l %(_)
endfor =
if-env = FRUIT
print = env %(_)
endif =
if-env = FRUIT=pear
print = pear
endif =
if-not-env = MISSING_VARIABLE
print = no variable
endif =
if-opt = two=2
print = two %(_)
endif =
if-not-opt = two=3
print = not three
endif =
if-exists = secret
print = %(_)
endif =
if-not-file = secret
print = no
endif =
ifdir = .
print = dir %(_)
endif =
if-reload =
print = reload
endif =
if-not-hostname = nobody
print = host
endif =
yaml = more.yaml
xml = more.xml:mine
[uwsgi]
again = yes
""",
    "base.ini": "[uwsgi]\nfrom-base = %n-%N-%(two)\n[two]\nharakiri = 7\n[three]\nx-three = %x\n",
    "more.yaml": "other:\n  no: 1\nuwsgi:\n  y-name: %n # a comment\n  y-two: /a:b\n",
    "more.xml": "<x><uwsgi id='theirs'><no>1</no></uwsgi>"
    "<uwsgi id='mine'><x-a>%n &amp; b</x-a><x-b/></uwsgi></x>",
    "secret": "sec\n",
    "empty": " ",
    "lines": "one\ntwo\n",
}


def test_as_uwsgi_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The options are those that ``uwsgi --show-config`` prints, with the same values, in the same order."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setenv("FRUIT", "apple")
    monkeypatch.delenv("MISSING_VARIABLE", raising=False)
    command = [UWSGI, "--show-config", "--ini", "app.ini", "--no-server"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=20)
    text = run.stderr.partition("[uwsgi]\n")[2].partition(";end of configuration")[0]
    theirs = [line for line in text.splitlines() if line not in ("show-config = true", "ini = app.ini")]
    theirs.remove("no-server = true")
    theirs = [line + ":mine" if line == "xml = more.xml" else line for line in theirs]  # it cuts that name
    ours = [f"{setting.key} = {setting.value}" for setting in read_configuration("app.ini", str(tmp_path))]
    assert ours == theirs


def test_every_option_of_uwsgi_has_an_outcome() -> None:
    """The table has every option of a real uWSGI, and names no other one in full."""
    run = subprocess.run([UWSGI, "--help"], capture_output=True, text=True, timeout=PATIENCE)
    names = set(re.findall(r"^ +(?:-.[|])?--([\w-]+)", run.stdout, re.MULTILINE))
    assert len(names) > 900
    assert [name for name in sorted(names) if rule_of(name) is RULES[-1]] == []
    written = {name for rule in RULES for name in rule.names.split() if name.isidentifier() or "-" in name}
    assert {name for name in written if not set(name) & set("*?")} - names == {"end"}
