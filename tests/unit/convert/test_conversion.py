"""What configurations are converted to."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.documents import ROOT
from uwsgitwisted.cli import main
from uwsgitwisted.convert.outcomes import RULES, Outcome, Rule, rule_of
from uwsgitwisted.taps import node, router, spooler

DOCUMENT = ROOT / "docs" / "convert.md"


class Converted:
    """A converted configuration."""

    def __init__(self, status: int, document: dict[str, Any]) -> None:
        self.status = status
        self.document = document

    def options(self, service: str) -> str:
        """Return a command's arguments."""
        return next(
            shlex.join(each["command"][each["command"].index(f"uwsgi-{service}") + 1 :])
            for each in self.document["commands"]
            if f"uwsgi-{service}" in each["command"]
        )

    def outcome(self, option: str) -> str:
        """Return what becomes of an option."""
        return next(
            f"{each['outcome']}: {each['text']}"
            for each in self.document["options"]
            if each["option"] == option
        )


@pytest.fixture
def converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Return a function that converts the lines of a section."""

    def convert(*lines: str) -> Converted:
        (tmp_path / "app.ini").write_text("\n".join(["[uwsgi]", *lines]))
        status = main(["convert", "--json", "--directory", "/srv", str(tmp_path / "app.ini")])
        return Converted(status, json.loads(capsys.readouterr().out))

    return convert


WEB = "module = app"


def assert_parsed(found: Converted) -> None:
    """Check that the services take their options."""
    for name, service in (("node", node), ("spooler", spooler), ("router", router)):
        for each in found.document["commands"]:
            line = each["command"]
            if f"uwsgi-{name}" in line:
                service.Options().parseOptions(line[line.index(f"uwsgi-{name}") + 1 :])


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("socket = 127.0.0.1:3031", "--listen tcp:3031:interface=127.0.0.1"),
        ("socket = :3031", "--listen tcp:3031:interface=0.0.0.0"),
        ("socket = localhost:3031", "--listen tcp:3031:interface=127.0.0.1"),
        ("socket = [::1]:3031", r"--listen 'tcp6:3031:interface=\:\:1'"),
        ("socket = run/a.sock\nchmod-socket", "--listen unix:/srv/run/a.sock:mode=666"),
        ("socket = /a.sock\nlisten = 2048", "--listen unix:/a.sock:backlog=2048"),
        (
            "suwsgi-socket = :1,a.crt,/b.key",
            "--listen ssl:1:interface=0.0.0.0:privateKey=/b.key:certKey=/srv/a.crt",
        ),
        ("processes = 2\nworkers = 5", "--engine processes:5"),
        ("threads = 4", "--wsgi-threads 4"),
        ("harakiri = 30   ; a comment", "--timeout 30"),
        ("max-requests = 500", "--max-requests 500"),
        ("reload-on-rss = 200", "--reload-on-rss 200M"),
        ("max-worker-lifetime = 3600", "--max-worker-lifetime 3600"),
        ("touch-reload = now", "--touch-reload /srv/now"),
        ("limit-as = 512", "--max-memory 512M"),
        ("limit-post = 1000", "--max-body 1000"),
        ("chdir = app", "--chdir /srv/app"),
        ("mount = /shop=shop.py", "--mount /shop=shop"),
        ("static-map = /static=.", "--static /static=/srv"),
        ("callable = create()", "--wsgi 'app:create()'"),
        ("wsgi-file = site/wsgi.py", "--wsgi site.wsgi"),
        ("chdir = /srv/x\nfile = /opt/my/wsgi.py\ncallable = app", "--wsgi wsgi:app"),
        ("req-logger = file:/var/log/a", "--access-log /var/log/a"),
        ("import = rpcs", "--handler rpcs"),
        ("cache = 10", "--cache items=10,size=655360"),
        ("cache2 = name=a,items=10,blocksize=100,purge_lru=1", "--cache name=a,items=10,size=1000,purge_lru=1"),
        ("cache2 = max_items=10,blocks=5,blocksize=10", "--cache name=default,items=10,size=50"),
        ("mules = 2\nmule\nmule = true", "--mules 4"),
        ("mule = a.py\nmule = b:run", "--mule a.py --mule b:run"),
        ("queue = 50", "--queue 50"),
        ("stats = :1717", "--stats tcp:1717:interface=0.0.0.0"),
        ("subscribe-to = 10.0.0.1:2626:a.com", "--subscribe 10.0.0.1:2626,a.com"),
        ("subscribe2 = server=/r.sock,key=a.com,addr=10.0.0.2:1", "--subscribe /r.sock,a.com,10.0.0.2:1"),
    ],
)
def test_options_of_the_node(converted: Any, line: str, expected: str) -> None:
    """Each option has its counterpart in the node's command, and nothing is refused."""
    found = converted(WEB, *line.split("\n"))
    assert found.document["problems"] == []
    assert found.status == 0
    assert f" {expected} " in f" {found.options('node')} "
    assert_parsed(found)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "",
            "--handler app --spool sqlite:/srv/spool.sqlite --drain dir:/srv/spool --workers 1",
        ),
        ("spooler-processes = 3", "--workers 3"),
        ("spooler-max-tasks = 10", "--max-requests 10"),
        ("spooler-harakiri = 60", "--timeout 60"),
        ("touch-reload = now", "--touch-reload /srv/now"),
        ("touch-spoolers-reload = now", "--touch-reload /srv/now"),
        ("import = tasks", "--handler tasks"),
        ("import = other\nspooler-import = tasks", "--handler tasks"),
    ],
)
def test_options_of_the_spooler(converted: Any, line: str, expected: str) -> None:
    """A spool directory becomes a spooler, and the node sends its tasks there."""
    found = converted(WEB, "spooler = spool", *line.split("\n"))
    assert found.status == 0
    assert f" {expected} " in f" {found.options('spooler')} "
    assert found.document["commands"][0]["environment"] == {"UWSGITWISTED_SPOOLER": "127.0.0.1:3034"}
    assert "--handler" not in found.options("node")
    assert_parsed(found)


def notes(found: Converted) -> str:
    """Return the notes about a conversion."""
    return "\n".join(found.document["notes"])


@pytest.mark.parametrize(
    ("lines", "port"),
    [
        ((), 3034),
        (("socket = :3034",), 3035),
        (("http = :3034", "stats = 127.0.0.1:3035"), 3036),
        (("ssl-socket = :3034,a.crt,a.key", "socket = 127.0.0.1:3036", "https = :3035,a.crt,a.key"), 3037),
    ],
)
def test_the_port_of_a_spooler(converted: Any, lines: tuple[str, ...], port: int) -> None:
    """A spooler beside a node gets a port that nothing else there has, and the output says which."""
    found = converted(WEB, "spooler = spool", *lines)
    assert f"--listen tcp:{port} " in found.options("spooler")
    assert found.document["commands"][0]["environment"]["UWSGITWISTED_SPOOLER"] == f"127.0.0.1:{port}"
    assert f"the spooler listens on port {port} of loopback" in notes(found)
    assert "change `--listen` and UWSGITWISTED_SPOOLER" in notes(found)
    assert_parsed(found)


def test_a_spooler_with_a_socket(converted: Any) -> None:
    """A spooler without a node gets the sockets of its configuration, where uWSGI takes tasks."""
    found = converted("spooler = spool", "import = tasks", "socket = 10.0.0.5:4000", "socket = spool.sock")
    expected = "--listen tcp:4000:interface=10.0.0.5 --listen unix:/srv/spool.sock --handler tasks "
    assert found.options("spooler").startswith(expected)
    assert "the spooler listens at tcp:4000:interface=10.0.0.5, unix:/srv/spool.sock" in notes(found)
    assert_parsed(found)
    found = converted("spooler = spool", "import = tasks")
    assert found.options("spooler").startswith("--listen tcp:3034 --handler tasks ")
    assert notes(found).count("UWSGITWISTED_SPOOLER") == 0


def test_two_spoolers(converted: Any) -> None:
    """The commands that further spool directories need have ports of their own."""
    found = converted(WEB, "spooler = a", "spooler = b", "http = :3035", "spooler = c")
    assert "--listen tcp:3034 " in found.options("spooler")
    problems = "\n".join(found.document["problems"])
    assert "`--listen tcp:3036 --drain dir:/srv/b`" in problems
    assert "`--listen tcp:3037 --drain dir:/srv/c`" in problems


def test_an_external_spooler(converted: Any) -> None:
    """Where it listens isn't known, and the output says so."""
    found = converted(WEB, "spooler-external = spool")
    assert found.document["commands"][0]["environment"] == {"UWSGITWISTED_SPOOLER": "127.0.0.1:3034"}
    assert "UWSGITWISTED_SPOOLER=127.0.0.1:3034 is a guess" in notes(found)


def test_a_large_configuration(converted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration as projects have them, with comments behind values, becomes three commands."""
    monkeypatch.setenv("VARIANT", "lms")
    monkeypatch.setenv("WORKERS", "6")
    found = converted(
        "site = /opt/site",
        "logs = %(site)/logs",
        "chdir = %(site)",
        "wsgi-file = $(VARIANT)/wsgi.py",
        "http = 0.0.0.0:8000",
        "strict = false",
        "master = true            ; one to rule them",
        "need-app = true",
        "processes = $(WORKERS)   ; as many as there may be",
        "harakiri = %(6 * 10)",
        "max-requests = 1000      ; then a new one",
        "reload-on-rss = 2048     # megabytes",
        "max-worker-lifetime = 3600",
        "worker-reload-mercy = 60",
        "static-map = /static=/",
        "static-map = /media=%(site)/../..",
        "logto = %(logs)/site.log",
        "pidfile = /tmp/%n.pid",
        "touch-reload = %(site)/$(VARIANT)/wsgi.py",
        "spooler = %(site)/spool",
        "spooler-processes = 2",
        "import = %(VARIANT)tasks",
        "VARIANT =",
    )
    assert found.status == 0
    assert [each["directory"] for each in found.document["commands"]] == ["/opt/site"] * 3
    command = found.document["commands"][0]["command"]
    assert command[1:6] == ["-n", "--pidfile", "/tmp/app.pid", "--logfile", "/opt/site/logs/site.log"]
    assert found.options("node") == (
        "--listen tcp:3031 --wsgi lms.wsgi --static /static=/ --static /media=/ --chdir /opt/site "
        "--engine processes:6 --timeout 60 --max-requests 1000 --reload-on-rss 2048M "
        "--max-worker-lifetime 3600 --drain-timeout 60 --touch-reload /opt/site/lms/wsgi.py --access-log -"
    )
    assert "--handler tasks " in found.options("spooler")
    assert found.options("router").startswith("--http tcp:8000:interface=0.0.0.0 --nodes 127.0.0.1:3031 ")
    assert_parsed(found)


def test_router(converted: Any) -> None:
    """HTTP becomes a router in front of the node, which listens on a port that is free."""
    found = converted(WEB, "http-socket = :3031", "https = :443,a.crt,a.key", "http-timeout = 9", "uid = ann")
    expected = "--http tcp:3031:interface=0.0.0.0 --https ssl:443:interface=0.0.0.0:privateKey=/srv/a.key"
    assert found.options("router").startswith(expected)
    assert found.options("router").endswith("--nodes 127.0.0.1:3032 --timeout 9")
    assert "--listen tcp:3032" in found.options("node")
    assert "AmbientCapabilities=CAP_NET_BIND_SERVICE\n" in found.document["units"]["app-router.service"]
    found = converted(WEB, "socket = :80", "protocol = http", "http-to = /x.sock")
    assert_parsed(found)
    assert found.options("router") == "--http tcp:80:interface=0.0.0.0 --nodes /x.sock"


def test_unit(converted: Any) -> None:
    """A unit has the user, the environment and the limits, with systemd's own characters escaped."""
    lines = ['env = A=%%d "$x"', "uid = ann", "gid = web", "pythonpath = lib", "prio = 5", "max-fd = 99"]
    found = converted(
        WEB, *lines, "static-map = /a$b=/x y", "home = venv", "umask = 022", "cron = 1 -1 -5 -1 0 a%%b"
    )
    unit = found.document["units"]["app.service"]
    assert r'Environment="A=%%d \"$x\""' in unit
    assert 'Environment="PYTHONPATH=/srv/lib"' in unit
    for line in ("User=ann", "Group=web", "Nice=5", "LimitNOFILE=99", "UMask=022", "WorkingDirectory=/srv"):
        assert f"{line}\n" in unit
    assert "ExecStart=/srv/venv/bin/twistd -n uwsgi-node " in unit
    assert '--static "/a$$b=/x y"' in unit
    assert found.document["cron"] == [r"1 * */5 * 0 a\%b"]


@pytest.mark.parametrize(("line", "before"), [("logto = x", "--logfile /srv/x"), ("logto = /dev/stdout", "")])
def test_log(converted: Any, line: str, before: str) -> None:
    """The log goes to the same file; the standard output needs no option."""
    command = converted(WEB, line).document["commands"][0]["command"]
    assert " ".join(command[2 : command.index("uwsgi-node")]) == before


def test_no_server_of_nginx(converted: Any) -> None:
    """A path that nginx can't have in its configuration is a problem; the rest is printed."""
    found = converted(WEB, "static-map = /a$b=/x")
    assert (found.status, found.document["nginx"]) == (1, "")
    assert found.document["problems"] == [
        "the server of nginx: nginx would take '/a$b/' for a variable of its own"
    ]


def test_nginx(converted: Any) -> None:
    """The server passes requests to the node, and has what uWSGI had of nginx's work."""
    lines = [
        "socket = /a.sock",
        "harakiri = 100",
        "static-map = /s=/srv/s",
        "check-static = www",
        "limit-post = 5",
    ]
    lines += [
        "add-header = X-A: b c",
        "error-page-404 = no.html",
        "static-expires = .* 60",
        "static-index = i.html",
    ]
    server = " ".join(converted(WEB, *lines).document["nginx"].split())
    for part in (
        "location @application { include uwsgi_params; uwsgi_pass unix:/a.sock; uwsgi_read_timeout 115s; }",
        "location /s/ { alias /srv/s/; expires 60s; }",
        "root /srv/www; location / { try_files $uri @application; }",
        "client_max_body_size 5;",
        'add_header X-A "b c" always;',
        "error_page 404 /error-404.html; location = /error-404.html { internal; alias /srv/no.html; }",
        "index i.html;",
    ):
        assert part in server


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("harakiri = soon", "'soon' is not a whole number"),
        ("plugins = python3,php", "only Python's applications run here, not php"),
        ("protocol = fastcgi", "nodes speak uwsgi, and the router HTTP"),
        ("logto = 10.0.0.1:514", "the journal has the log"),
        ("cron = 1 2 3 x", "it has five times and a command"),
        ("cron2 = minute=1,harakiri=5 x", "harakiri: write the line of crontab yourself"),
        ("add-header = X: $y", "nginx would take '$y' for a variable"),
        ("emperor = /etc/vassals", "convert the vassals' files one by one"),
        ("gevent = 100", "let each worker run several requests with `--wsgi-threads N`"),
        ("harakri = 5", "uWSGI 2.0 has no such option, and no other option uses it"),
        ("env = A=$(NO_SUCH_VARIABLE)", "$(NO_SUCH_VARIABLE): set this environment variable"),
        ("cache2 = name=a,items=1,store=/x", "a node's cache has no store: use Redis or memcached"),
        ("cache2 = name=a", "it has a number of items"),
        ("subscribe-to = 10.0.0.1", "write ROUTER:KEY"),
        ("subscribe2 = server=a,key=b,weight=2", "only server=, key= and addr= are possible"),
        ("chdir = x%(nowhere)", "%(nowhere): no option has this name"),
    ],
)
def test_refused(converted: Any, line: str, expected: str) -> None:
    """What has no counterpart is refused with what to do, and the exit status says so."""
    found = converted(WEB, line)
    assert found.status == 1
    assert expected in found.outcome(line.partition(" ")[0])


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("socket = @abstract", "@abstract: a name in the abstract namespace"),
        ("socket = example.com:80", "write the address of the interface instead of 'example.com'"),
        ("socket = fd://3", "a socket that another process has opened"),
        ("https = :443", "it has an address, a certificate and a key"),
        ("wsgi-file = my-app.py", "my-app.py: rename it"),
        ("mount = example.com=app.py", "mount = example.com=app.py: only `/path=module:callable`"),
        ("static-map = nothing", "static-map = nothing: `--static` takes a path and a directory"),
        ("import = a\nimport = b", "write a module that imports a, b"),
        ("spooler = a\nspooler = b", "spooler = b: one spooler has any number of queues"),
    ],
)
def test_problems(converted: Any, line: str, expected: str) -> None:
    """What the commands lack is said, and the exit status says so."""
    found = converted(WEB, *line.split("\n"))
    assert found.status == 1
    assert any(expected in problem for problem in found.document["problems"])


def test_a_spooler_without_a_module(converted: Any) -> None:
    """A spooler for which nothing is imported is a problem."""
    assert "add `--handler MODULE`" in converted("spooler = a").document["problems"][0]


def test_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The text has each option with its place, what is left to do, and everything that can be copied."""
    path = tmp_path / "app.ini"
    path.write_text(
        "[uwsgi]\nbase = \x1b[1m\nmodule = app\nenv = A=a b\nuid = ann\nthread = 2\ncron2 = minute=-2 x\n"
    )
    assert main(["convert", "--directory", "/srv", str(path)]) == 1
    out = capsys.readouterr().out
    assert f"#   module = app  ({path}:3)\n#       the same: node: `--wsgi`\n" in out
    assert "\n# What is left to do\n#   base: uWSGI 2.0 has no such option" in out
    assert "\n# Where defaults differ\n#   processes is not set" in out
    assert re.search(r"\n# app\ncd /srv && A='a b' \S+ -n --uid ann uwsgi-node ", out)
    assert "\n# /etc/systemd/system/app.service\n[Unit]\n" in out
    assert "\nserver {\n" in out
    assert "\n*/2 * * * * x\n" in out
    assert "\x1b" not in out


def test_errors_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that can't be read ends the command with a line that names it, and the status 2."""
    (tmp_path / "app.ini").write_text("[uwsgi]\nini = none.ini\n")
    assert main(["convert", "--directory", str(tmp_path), str(tmp_path / "app.ini")]) == 2
    assert capsys.readouterr().err.startswith(f"uwsgitwisted: {tmp_path}/app.ini:2: ")


MOVING = (
    (ROOT / "docs" / "moving.md").read_text(encoding="utf-8").partition("## An ini file")[2].partition("## ")[0]
)


@pytest.mark.parametrize(("line", "here"), re.findall(r"^\| `(.* = .*?)` \| (.*) \|$", MOVING, re.MULTILINE))
def test_the_table_of_moving(converted: Any, line: str, here: str) -> None:
    """docs/moving.md tells of each option what the command makes of it."""
    found = converted(WEB, line, *(["spooler = spool"] if line.startswith("spooler-") else []))
    commands = [shlex.join(each["command"]) for each in found.document["commands"]]
    written = "\n".join([*commands, *found.document["units"].values(), *found.document["cron"]])
    assert found.status == 0
    assert all(code in written for code in re.findall("`(.*?)`", here))
    assert here.startswith("nothing") == found.outcome(line.partition(" ")[0]).startswith("unnecessary")


def row(rule: Rule) -> str:
    names = ", ".join(f"`{name}`" for name in rule.names.split())
    return f"| {names} | {rule.outcome.value} | {rule.text} |"


def test_the_document_has_the_table() -> None:
    """docs/convert.md has the table of options, as it is in the code."""
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("| `")] == [row(rule) for rule in RULES]


def test_the_table() -> None:
    """Each name is in one rule, and a rule that does nothing to a plan is not the same."""
    names = [name for rule in RULES for name in rule.names.split()]
    assert sorted(set(names)) == sorted(names)
    assert all(rule.act for rule in RULES if rule.outcome is Outcome.SAME)
    assert not any(rule.act for rule in RULES if rule.outcome is Outcome.REFUSED)
    assert rule_of("static-expires-uri").text == "`expires` for all static files"
