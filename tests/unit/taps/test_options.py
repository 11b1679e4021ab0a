"""The options of the twistd commands, and the services that they make."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import twisted
from twisted.application.service import IService
from twisted.application.twist._options import TwistOptions
from twisted.internet import reactor
from twisted.python.usage import UsageError
from twisted.scripts.twistd import ServerOptions as Twistd  # type: ignore[attr-defined]

from uwsgitwisted import __version__
from uwsgitwisted.address import Address
from uwsgitwisted.engines.descriptions import available_cores
from uwsgitwisted.errors import StartupError
from uwsgitwisted.responders.spool import HTTP_VARS
from uwsgitwisted.router.shared import RouterSettings
from uwsgitwisted.router.static import StaticFiles
from uwsgitwisted.services.router import RouterOptions
from uwsgitwisted.services.settings import ServerSettings
from uwsgitwisted.taps import node, renderer, router, spooler
from uwsgitwisted.taps.options import ServerOptions, count, installed_reactor, size
from uwsgitwisted.transport.server.limits import Limits
from uwsgitwisted.wire.terms import MAX_MESSAGE

NODE = ["--handler", "my_server"]
RENDERER = ["--templates", "/srv/templates"]
SPOOLER = ["--handler", "my_tasks", "--spool", "sqlite:spool.sqlite"]
COMMANDS = [
    pytest.param(node.Options, NODE, 3_033, id="node"),
    pytest.param(renderer.Options, RENDERER, 3_033, id="renderer"),
    pytest.param(spooler.Options, SPOOLER, 3_034, id="spooler"),
]
COMMAND_LINES = [("uwsgi-node", NODE), ("uwsgi-renderer", RENDERER), ("uwsgi-spooler", SPOOLER)]


NEED_PROCESSES = "WSGI applications need --engine processes:N"


def parse(make: type[ServerOptions], *arguments: str) -> Any:
    options = make()
    options.parseOptions(list(arguments))
    return options


class TestNumbers:
    @pytest.mark.parametrize(("text", "number"), [("10", 10), ("2k", 2_048), ("64M", 1 << 26), ("1G", 1 << 30)])
    def test_size(self, text: str, number: int) -> None:
        """A size may have a unit."""
        assert size(text) == number

    @pytest.mark.parametrize("text", ["", "x", "0", "-1", "nan", "inf"])
    @pytest.mark.parametrize("convert", [count, size])
    def test_refused(self, convert: Any, text: str) -> None:
        """Anything else is refused, and so is an empty text."""
        with pytest.raises(ValueError, match=r"."):
            convert(text)

    @pytest.mark.parametrize("text", ["K", "1.5M", "0G", "1T"])
    def test_refused_size(self, text: str) -> None:
        """A unit needs a whole number from 1 before it."""
        with pytest.raises(ValueError, match=r"."):
            size(text)


@pytest.mark.parametrize(("make", "arguments", "port"), COMMANDS)
class TestCommon:
    def test_defaults(self, make: type[ServerOptions], arguments: list[str], port: int) -> None:
        """A service that is told only what it must be listens on loopback with the documented limits."""
        settings = replace(parse(make, *arguments).settings(), options={})
        expected = ServerSettings(listen=(f"tcp:{port}:interface=127.0.0.1",))
        if make is spooler.Options:
            expected = replace(expected, timeout=3_600.0, engine=f"processes:{available_cores()}")
        if make is renderer.Options:
            expected = replace(expected, max_memory=1 << 30)
        assert settings == expected
        assert settings.max_message == MAX_MESSAGE
        assert settings.node == socket.gethostname()
        assert settings.tracebacks
        assert settings.networks is None

    def test_everything(self, make: type[ServerOptions], arguments: list[str], port: int) -> None:
        """Each option reaches its setting."""
        given = (
            "-l tcp:1 --listen unix:/x --engine processes:3 --timeout 5 --drain-timeout 6 --max-queue 7 "
            "--max-message 8K --max-buffered 1G --max-connections 9 --max-connections-per-peer 8 "
            "--header-timeout 10 --body-timeout 11 --write-timeout 12 "
            "--idle-timeout 13 --node n1 --no-tracebacks --max-memory 2G"
        )
        settings = replace(parse(make, *arguments, *given.split()).settings(), options={})
        assert settings == ServerSettings(
            listen=("tcp:1:interface=127.0.0.1", "unix:/x"),
            engine="processes:3",
            timeout=5.0,
            drain_timeout=6.0,
            max_queue=7,
            max_message=8_192,
            max_memory=2 << 30,
            tracebacks=False,
            node="n1",
            limits=Limits(
                header_timeout=10,
                body_timeout=11,
                write_timeout=12,
                idle_timeout=13,
                max_connections=9,
                max_peer_connections=8,
                max_buffered=1 << 30,
            ),
        )

    def test_proxy(self, make: type[ServerOptions], arguments: list[str], port: int) -> None:
        """A listener that hides the peers' addresses is refused; the error says what to do instead."""
        with pytest.raises(UsageError, match=r"--listen haproxy:tcp:1: a PROXY header .* name the proxy"):
            parse(make, *arguments, "--listen", "haproxy:tcp:1")

    def test_allow(self, make: type[ServerOptions], arguments: list[str], port: int) -> None:
        """With --allow, the service listens on every interface."""
        settings = parse(make, *arguments, "--allow", "10.0.0.0/8", "--allow", "fd00::1").settings()
        assert settings.listen == (f"tcp:{port}",)
        assert settings.networks == (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::1/128"))

    @pytest.mark.parametrize(
        ("wrong", "told"),
        [
            ("--allow nowhere", "--allow nowhere: 'nowhere' does not appear to be"),
            ("--timeout 0", "--timeout 0: not a number of seconds above 0"),
            ("-t soon", "--timeout soon: not a number of seconds above 0"),
            ("--idle-timeout=-1", "--idle-timeout -1: not a number of seconds above 0"),
            ("--max-queue 1.5", "--max-queue 1.5: not a whole number from 1"),
            ("--max-message 1T", "--max-message 1T: not a whole number from 1, with or without K"),
            ("--engine warp", "--engine warp: no engine is called 'warp'"),
            ("--engine processes:0", "--engine processes:0: '0' is not a number from 1"),
            ("--listen tcp:1\\", "--listen tcp:1\\: it ends with a backslash"),
            ("--no-such-option", "option --no-such-option not recognized"),
            ("--no-tracebacks=1", "option --no-tracebacks must not have an argument"),
            ("--max-queue", "option --max-queue requires argument"),
            ("my_server surplus", "'my_server' belongs to no option"),
        ],
    )
    def test_mistakes(
        self, make: type[ServerOptions], arguments: list[str], port: int, wrong: str, told: str
    ) -> None:
        """The user's mistakes raise UsageError with the option's name and value."""
        with pytest.raises(UsageError) as caught:
            parse(make, *arguments, *wrong.split())
        assert str(caught.value).startswith(told)
        assert "\n" not in str(caught.value)

    def test_something_is_missing(self, make: type[ServerOptions], arguments: list[str], port: int) -> None:
        """A missing option without a default is an error, which shows an example."""
        for place in range(0, len(arguments), 2):
            with pytest.raises(UsageError) as caught:
                parse(make, *arguments[:place], *arguments[place + 2 :])
            assert f"for example: {arguments[place]} {arguments[place + 1]}" in str(caught.value)

    def test_help(self, make: type[ServerOptions], arguments: list[str], port: int) -> None:
        """The help text names every option."""
        text = make().getUsage(width=100)
        for option in ("--listen", "--allow", "--engine", "--no-tracebacks", arguments[0]):
            assert option in text

    def test_help_of_an_option(self, make: type[ServerOptions], arguments: list[str], port: int) -> None:
        """It has one default at most, and neither an empty one nor the indentation of the source."""
        helps = re.split(r"\n +(?=-)", make().getUsage(width=1_000))
        assert [text for text in helps[1:] if text.count("default: ") > 1 or "[default: ]" in text] == []
        assert [text for text in helps[1:] if "  " in text.split("  ", 1)[-1].strip()] == []

    def test_what_handlers_see(self, make: type[ServerOptions], arguments: list[str], port: int) -> None:
        """They see what was given, by long names; what was given several times, as a list; a flag, as True."""
        listen = ["-l", "tcp:1", "--listen=tcp:2"]
        options = parse(make, *arguments, *listen, "--engine", "threads:3", "--no-trace", "--timeout=5")
        assert options.settings().options == {
            **dict(zip([name.lstrip("-") for name in arguments[::2]], arguments[1::2], strict=True)),
            "listen": ["tcp:1", "tcp:2"],
            "engine": "threads:3",
            "no-tracebacks": True,
            "timeout": "5",
        }


@pytest.mark.parametrize(
    ("spool", "shown"),
    [
        ("sqlite:spool.sqlite", "sqlite:spool.sqlite"),
        ("postgresql://ann:s3cret@db:5432/tasks", "postgresql://ann@db:5432/tasks"),
        ("postgresql://ann:s3c@ret@[::1/tasks", "postgresql://ann@[::1/tasks"),
        ("postgresql://db/tasks?user=ann&password=s3cret", "postgresql://db/tasks"),
        ("postgresql:///tasks", "postgresql:///tasks"),
        ("postgresql://ann@db", "postgresql://ann@db"),
    ],
)
def test_no_password_for_handlers(spool: str, shown: str) -> None:
    """They see where the spool is, without a password."""
    given = parse(spooler.Options, "--handler", "my_tasks", "-s", spool).settings().options
    assert given == {"handler": "my_tasks", "spool": shown}


def as_twistd(*line: str) -> Any:
    """Parse the command line of twistd, as it does itself."""
    config: Any = Twistd()
    config.parseOptions(list(line))
    return config


@pytest.mark.parametrize(("command", "arguments"), COMMAND_LINES)
class TestTwistd:
    def test_a_mistake(self, command: str, arguments: list[str]) -> None:
        """A mistake ends twistd with a line that names the option, and one that points to the help."""
        with pytest.raises(SystemExit) as caught:
            as_twistd("-n", command, *arguments, "--timeout", "x")
        assert str(caught.value.code).splitlines() == [
            f"{command}: --timeout x: not a number of seconds above 0",
            f"See 'twistd {command} --help'.",
        ]

    @pytest.mark.parametrize("line", [["--wrong"], ["surplus"], ["--listen", "haproxy:tcp:1"], ["-l"], []])
    def test_any_mistake(self, command: str, arguments: list[str], line: list[str]) -> None:
        """So does any other mistake, wherever it is noticed."""
        with pytest.raises(SystemExit) as caught:
            as_twistd(command, *(arguments if line else []), *line)
        assert str(caught.value.code).startswith(f"{command}: ")
        assert len(str(caught.value.code).splitlines()) == 2

    def test_version(self, command: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        """The version is ours, with Twisted's beside it."""
        with pytest.raises(SystemExit) as caught:
            as_twistd(command, "--version")
        assert caught.value.code == 0
        assert capsys.readouterr().out == f"uwsgitwisted {__version__}, Twisted {twisted.__version__}\n"

    @pytest.mark.parametrize("flag", ["-n", "--nodaemon"])
    def test_no_pid_file_in_the_foreground(self, command: str, arguments: list[str], flag: str) -> None:
        """In the foreground there is a pid file only if --pidfile names one."""
        assert as_twistd(flag, command, *arguments)["pidfile"] == ""
        assert as_twistd(flag, "--pidfile=a.pid", command, *arguments)["pidfile"] == os.path.abspath("a.pid")

    @pytest.mark.parametrize(
        ("listen", "place"),
        [
            (["tcp:4000"], "4000"),
            (["tcp:port=4000:interface=0.0.0.0", "tcp:5000"], "4000"),
            (["unix:/run/node.sock:mode=600"], "node.sock"),
            (["tcp"], "tcp"),
        ],
    )
    def test_pid_file_in_the_background(
        self, command: str, arguments: list[str], listen: list[str], place: str
    ) -> None:
        """In the background it is named after the service and its first endpoint."""
        options = [word for each in listen for word in ("--listen", each)]
        assert as_twistd(command, *arguments, *options)["pidfile"] == os.path.abspath(f"{command}-{place}.pid")
        assert as_twistd("--pidfile=a.pid", command, *arguments)["pidfile"] == os.path.abspath("a.pid")
        assert as_twistd("--pidfile=", command, *arguments)["pidfile"] == ""


def test_another_program_than_twistd() -> None:
    """A program without pid files, such as Twisted's twist, gets none."""
    config = TwistOptions()
    config.parseOptions(["uwsgi-node", *NODE])
    assert "pidfile" not in config


def test_the_default_pid_file() -> None:
    """Without --listen, it has the service's default port."""
    assert as_twistd("uwsgi-spooler", *SPOOLER)["pidfile"] == os.path.abspath("uwsgi-spooler-3034.pid")


class TestSpooler:
    def test_delays(self) -> None:
        """The first delay can't be longer than the longest."""
        with pytest.raises(UsageError, match="longer than"):
            parse(spooler.Options, *SPOOLER, "--first-delay", "5", "--max-delay", "4")

    def test_return_codes(self) -> None:
        """The return codes are those of one uWSGI or another."""
        assert parse(spooler.Options, *SPOOLER, "--return-codes", "0.9")["return-codes"] == "0.9"
        with pytest.raises(UsageError, match=r"^--return-codes 3\.0: write 0\.9 or 2\.0$"):
            parse(spooler.Options, *SPOOLER, "--return-codes", "3.0")

    def test_workers(self) -> None:
        """As many tasks run at once as there are processes, unless --workers says otherwise."""
        assert parse(spooler.Options, *SPOOLER, "--engine", "processes:3")["workers"] == 3
        assert parse(spooler.Options, *SPOOLER, "--engine", "processes:3", "--workers", "2")["workers"] == 2
        assert parse(spooler.Options, *SPOOLER)["workers"] >= 1
        assert parse(spooler.Options, *SPOOLER, "--engine", "reactor")["workers"] >= 1

    def test_timeout(self) -> None:
        """A task may run for longer than a request to a node."""
        assert parse(spooler.Options, *SPOOLER).settings().timeout == 3600
        assert parse(spooler.Options, *SPOOLER, "--timeout", "5").settings().timeout == 5
        assert "3600" in spooler.Options().getUsage(width=200)

    def test_queues(self) -> None:
        """Queues with workers of their own have processes of their own."""
        queues = ["--queue", "mail=2", "--queue", "a=b=1"]
        options = parse(spooler.Options, *SPOOLER, *queues, "--workers", "4")
        assert options["queues"] == {"mail": 2, "a=b": 1}
        assert options["engine"] == "processes:7"
        assert parse(spooler.Options, *SPOOLER, *queues, "--engine", "processes:5")["workers"] == 2
        with pytest.raises(UsageError, match="leaves no worker"):
            parse(spooler.Options, *SPOOLER, *queues, "--engine", "processes:3")

    @pytest.mark.parametrize("queue", ["mail", "mail=", "mail=0", "mail=two", "=2", ""])
    def test_bad_queues(self, queue: str) -> None:
        """A queue has a name and a number of workers."""
        with pytest.raises(UsageError, match="for example --queue mail=2"):
            parse(spooler.Options, *SPOOLER, "--queue", queue)

    def test_cron(self) -> None:
        """A periodic task is checked at once."""
        options = parse(spooler.Options, *SPOOLER, "--cron", "*/5 * * * * job=a", "--cron", "0 7 * * * job=b")
        assert len(options["periodic"]) == 2
        with pytest.raises(UsageError, match=r"--cron 'soon'.*for example"):
            parse(spooler.Options, *SPOOLER, "--cron", "soon")

    def test_drain(self) -> None:
        """--drain takes a directory."""
        assert parse(spooler.Options, *SPOOLER, "--drain", "dir:/var/spool")["drain"] == "/var/spool"
        for wrong in ("/var/spool", "dir:", "sqlite:x"):
            with pytest.raises(UsageError, match="for example --drain dir:"):
                parse(spooler.Options, *SPOOLER, "--drain", wrong)

    def test_manage(self) -> None:
        """--manage takes networks."""
        options = parse(spooler.Options, *SPOOLER, "--manage", "10.0.0.0/8", "--manage", "::1")
        assert list(map(str, options["manage"])) == ["10.0.0.0/8", "::1/128"]
        with pytest.raises(UsageError, match="--manage everybody"):
            parse(spooler.Options, *SPOOLER, "--manage", "everybody")

    def test_bounds(self) -> None:
        """Only the number of queues has a default limit; 0 leaves the queues with workers of their own."""
        options = parse(spooler.Options, *SPOOLER)
        assert [options[f"max-{what}"] for what in ("tasks", "spool-size", "queues")] == [None, None, 1000]
        options = parse(
            spooler.Options, *SPOOLER, "--max-tasks", "5", "--max-spool-size", "2G", "--max-queues", "0"
        )
        assert [options[f"max-{what}"] for what in ("tasks", "spool-size", "queues")] == [5, 2 << 30, 0]
        for option in ("tasks", "spool-size", "queues"):
            with pytest.raises(UsageError):
                parse(spooler.Options, *SPOOLER, f"--max-{option}", "-1")

    def test_keep_results(self) -> None:
        """Results are kept for a while, or not at all."""
        assert parse(spooler.Options, *SPOOLER)["keep-results"] == 3600
        assert parse(spooler.Options, *SPOOLER, "--keep-results", "0")["keep-results"] == 0
        with pytest.raises(UsageError):
            parse(spooler.Options, *SPOOLER, "--keep-results", "-1")

    @pytest.mark.parametrize("other", ["--wsgi", "--mount"])
    def test_resource(self, other: str) -> None:
        """A resource answers web requests by itself; objects may be answered beside it."""
        assert parse(node.Options, "--resource", "a.B")["resource"] == "a.B"
        assert parse(node.Options, "--resource", "a.B", "--handler", "my_server")["handler"] == "my_server"
        with pytest.raises(UsageError, match=f"--resource and {other} would both answer web requests"):
            parse(node.Options, "--resource", "a.B", other, "/x=c:d")

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            ("--wsgi app --wsgi-threads 0", "--wsgi-threads 0: not a whole number from 1"),
            ("--wsgi app --wsgi-threads 257", "--wsgi-threads 257: 256 is the most"),
            (
                "--handler app --wsgi-threads 2",
                "--wsgi-threads is for WSGI applications: give --wsgi or --mount",
            ),
            ("--resource app.Site --wsgi-threads 2", "--wsgi-threads is for WSGI applications"),
        ],
    )
    def test_wsgi_threads(self, arguments: str, text: str) -> None:
        """A worker may run several requests at a time, if they may be web requests."""
        assert parse(node.Options, "--mount", "/a=app", "--wsgi-threads", "256")["wsgi-threads"] == 256
        assert parse(node.Options, "--wsgi", "app")["wsgi-threads"] == 1
        with pytest.raises(UsageError) as caught:
            parse(node.Options, *arguments.split())
        assert str(caught.value).startswith(text)

    def test_applications(self) -> None:
        """Applications are mounted at paths; the one of --wsgi answers what is left."""
        line = "--wsgi a:b --mount /x=c:d --mount /y/z/=e:f() --max-body 2K"
        options = parse(node.Options, *line.split())
        assert options["mount"] == {"": "a:b", "/x": "c:d", "/y/z": "e:f()"}
        assert options.settings().max_body == 2_048
        assert parse(node.Options, "--mount", "/=a")["mount"] == {"": "a"}
        assert parse(node.Options, "--wsgi", "a", *NODE)["handler"] == "my_server"

    def test_places_of_applications(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """Paths are those of the directory in which twistd starts."""
        monkeypatch.chdir(tmp_path)
        options = parse(node.Options, "--wsgi", "a", "--chdir", "place", "--env-file", "env")
        assert options["chdir"] == str(tmp_path / "place")
        assert options["env-file"] == str(tmp_path / "env")

    @pytest.mark.parametrize(
        ("line", "told"),
        [
            ("", "--handler is missing"),
            ("--mount x=a:b", "--mount x=a:b: write /path=module:callable"),
            ("--mount /x", "--mount /x: write /path=module:callable"),
            ("--mount /x=", "--mount /x=: write /path=module:callable"),
            ("--mount /x=a --mount /x/=b", "--mount /x/=b: another application is mounted at /x"),
            ("--mount /=a --mount /=b", "--mount /=b: another application is mounted at /"),
            ("--wsgi a --mount /=b", "--wsgi a: another application is mounted at /"),
            (
                "--wsgi a --engine threads:2",
                f"--engine threads:2: {NEED_PROCESSES}",
            ),
            (
                "--mount /x=a --engine reactor",
                f"--engine reactor: {NEED_PROCESSES}",
            ),
            ("--wsgi a --max-body 0", "--max-body 0: "),
            ("--wsgi a --max-body -1", "--max-body -1: "),
        ],
    )
    def test_mistakes_with_applications(self, line: str, told: str) -> None:
        """The user's mistakes raise UsageError with the option's name and value."""
        with pytest.raises(UsageError) as caught:
            parse(node.Options, *line.split())
        assert told in str(caught.value)

    def test_http_vars(self) -> None:
        """The variables of a web request are a list."""
        assert parse(spooler.Options, *SPOOLER)["http-vars"] == HTTP_VARS
        assert parse(spooler.Options, *SPOOLER, "--http-vars", "A, B,")["http-vars"] == ("A", "B")


class TestStatic:
    @pytest.mark.parametrize("command", [(node.Options, []), (router.Options, ["--nodes", "h:1"])])
    def test_directories(self, command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Node and router take the same: directories by paths, as they are named, even if they are links."""
        make, arguments = command
        (tmp_path / "link").symlink_to(".")
        monkeypatch.chdir(tmp_path)
        options = parse(make, *arguments, "--static", "/a/=link", "--static", "/=.")
        assert options["static"] == {"/a": str(tmp_path / "link"), "": str(tmp_path)}
        for wrong, told in [
            ("a=.", "--static a=.: write /path=DIRECTORY"),
            ("/a", "--static /a: write /path=DIRECTORY"),
            ("/a=", "--static /a=: write /path=DIRECTORY"),
            ("/a=absent", "--static /a=absent: absent is no directory"),
        ]:
            with pytest.raises(UsageError) as caught:
                parse(make, *arguments, "--static", wrong)
            assert str(caught.value).startswith(told)
        with pytest.raises(UsageError, match=r"^--static /a/=\.: another directory is at /a$"):
            parse(make, *arguments, "--static", "/a=.", "--static", "/a/=.")

    def test_beside_applications(self) -> None:
        """A node sends files with or without applications, but not at the same path."""
        assert not node.NodeSettings().has_web_workers
        options = parse(node.Options, "--static", "/a=.", "--wsgi", "b:c", "--mount", "/d=e")
        assert options["mount"] == {"": "b:c", "/d": "e"}
        for given, path in ((["--mount", "/a=b:c"], "/a"), (["--static", "/=.", "--wsgi", "b:c"], "/")):
            with pytest.raises(
                UsageError, match=rf"^--static {path}=\.\.\.: an application is mounted at {path}$"
            ):
                parse(node.Options, "--static", "/a=.", *given)
        with pytest.raises(UsageError, match=r"^--wsgi b:c: another application is mounted at /$"):
            parse(node.Options, "--mount", "/=d:e", "--wsgi", "b:c")

    def test_what_runs_it(self) -> None:
        """Worker processes do; so no other engine and no resource may be given."""
        assert parse(node.Options, "--static", "/a=.")["static"] == {"/a": os.getcwd()}
        with pytest.raises(UsageError, match="--engine threads:2: static files need --engine processes:N"):
            parse(node.Options, "--static", "/a=.", "--engine", "threads:2")
        with pytest.raises(UsageError, match="--resource and --static would both answer web requests"):
            parse(node.Options, "--static", "/a=.", "--resource", "a.B")


ROUTER = ["--nodes", "10.0.0.5:3031,/run/node.sock"]


class TestRouter:
    def test_defaults(self) -> None:
        """A router that is told only its nodes listens on loopback with the documented limits."""
        nodes = (Address("tcp", "10.0.0.5", 3_031), Address("unix", path="/run/node.sock"))
        expected = RouterOptions(listen=("tcp:8080:interface=127.0.0.1",), nodes=nodes)
        found = parse(router.Options, *ROUTER).service_options()
        assert replace(found, requests=RouterSettings()) == expected
        assert replace(found.requests, static=()) == RouterSettings()

    def test_all(self, tmp_path: Path) -> None:
        """Each option has its place."""
        line = f"""
            --http tcp:1 --https ssl:2:privateKey=k.pem --nodes h:1 --nodes h:2 --static /static={tmp_path}
            --allow 10.0.0.0/8 --trust 10.0.0.9 --connect-timeout 1 --drain-timeout 2 --max-body 3K
            --max-connections 5 --max-connections-per-peer 4 --header-timeout 6 --body-timeout 7 -t 5
            --write-timeout 8 --idle-timeout 9 --max-spooled 4K --max-in-flight 10 --buffer-body 2K
        """.split()
        assert parse(router.Options, *line).service_options() == RouterOptions(
            listen=("tcp:1", "ssl:2:privateKey=k.pem"),
            nodes=(Address("tcp", "h", 1), Address("tcp", "h", 2)),
            max_in_flight=10,
            connect_timeout=1,
            drain_timeout=2,
            requests=RouterSettings(
                timeout=5,
                max_body=3 << 10,
                buffer_body=2 << 10,
                max_spooled=4 << 10,
                static=(StaticFiles("/static", str(tmp_path)),),
                networks=(ipaddress.ip_network("10.0.0.0/8"),),
                trusted=(ipaddress.ip_network("10.0.0.9"),),
                limits=Limits(6, 7, 8, 9, 5, 4),
            ),
        )

    @pytest.mark.parametrize(
        ("wrong", "told"),
        [
            ("--http ssl:1", "--http ssl:1: for TLS, write --https ssl:1"),
            ("--https tcp:1", "--https tcp:1: it has no TLS; for example: --https ssl:8443:"),
            ("--http haproxy:tcp:1", "--http haproxy:tcp:1: a PROXY header"),
            ("--nodes nowhere", "--nodes nowhere: nowhere: not an address"),
            ("--nodes h:1,", "--nodes h:1,: "),
            ("--static static=/tmp", "--static static=/tmp: write /path=DIRECTORY"),
            ("--static /static", "--static /static: write /path=DIRECTORY"),
            ("--static /static=/absent", "--static /static=/absent: /absent is no directory"),
            ("--trust everybody", "--trust everybody: 'everybody' does not"),
            ("--max-body 0", "--max-body 0: not a whole number from 1"),
            ("surplus", "'surplus' belongs to no option"),
        ],
    )
    def test_mistakes(self, wrong: str, told: str) -> None:
        """The user's mistakes raise UsageError with the option's name and value."""
        with pytest.raises(UsageError) as caught:
            parse(router.Options, *ROUTER, *wrong.split())
        assert str(caught.value).startswith(told)

    def test_no_nodes(self) -> None:
        """A router needs nodes."""
        with pytest.raises(UsageError, match=r"^--nodes is missing; for example: --nodes 10"):
            parse(router.Options)

    def test_the_service(self) -> None:
        """The service is made of the options, and the pid file has the port."""
        assert IService.providedBy(router.makeService(parse(router.Options, "--nodes", "127.0.0.1:1")))
        assert as_twistd("uwsgi-router", *ROUTER)["pidfile"] == os.path.abspath("uwsgi-router-8080.pid")


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Handler modules that a process of its own can import."""
    (tmp_path / "a_server.py").write_text("import uwsgi\nuwsgi.message_manager_marshal = lambda o, i: o\n")
    (tmp_path / "a_tasks.py").write_text("import uwsgi\nuwsgi.spooler = lambda env: uwsgi.SPOOL_OK\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


class TestServices:
    def test_reactor(self) -> None:
        """The reactor is the one that is installed."""
        assert installed_reactor() is reactor

    def test_the_reactor_stays_as_it_is(self, modules: Path) -> None:
        """Neither parsing options nor making a service changes the reactor; starting the service does."""
        program = """
import time
from twisted.internet import reactor
from uwsgitwisted.taps import node
before = dict(vars(reactor))
options = node.Options()
options.parseOptions(["--handler", "a_server", "--engine", "reactor", "--listen", "unix:socket"])
service = node.makeService(options)
assert vars(reactor) == before
service.privilegedStartService()
assert abs(reactor.seconds() - time.monotonic()) < 10
service.startService()
reactor.callLater(0.01, lambda: service.stopService().addCallback(lambda _: reactor.stop()))
reactor.run()
"""
        subprocess.run([sys.executable, "-c", program], check=True, timeout=60)

    def test_node(self, modules: Path) -> None:
        """A node is made of its handler module."""
        assert IService.providedBy(node.makeService(parse(node.Options, "--handler", "a_server")))

    def test_node_with_a_resource(self, modules: Path) -> None:
        """A node is made of a resource."""
        (modules / "a_site.py").write_text("from twisted.web.resource import Resource\nroot = Resource()\n")
        assert IService.providedBy(node.makeService(parse(node.Options, "--resource", "a_site.root")))

    def test_renderer(self, modules: Path) -> None:
        """A renderer is made of its directories."""
        options = parse(renderer.Options, "--templates", str(modules), "--filters", "h, trim,", "--strict")
        assert IService.providedBy(renderer.makeService(options))

    def test_renderer_options(self) -> None:
        """Each option of a renderer reaches what loads its templates."""
        given = (
            "--templates /a --templates /b --autoescape html,xml --imports one --imports two "
            "--encoding latin-1 --python2 utf-8 "
            "--engine-for .j=jinja2 --engine-for *=mako --preload --no-reload --max-output 1M --answer bytes "
            "--module-directory /c --result-cache 2M --result-age 5"
        )
        assert parse(renderer.Options, *given.split()).templates() == {
            "directories": ["/a", "/b"],
            "filters": [],
            "autoescape": ["html", "xml"],
            "strict": False,
            "debug": False,
            "imports": ["one", "two"],
            "encoding": "latin-1",
            "engines": {".j": "jinja2", "*": "mako"},
            "preload": True,
            "reload": False,
            "max_output": 1 << 20,
            "answer": "bytes",
            "python2": "utf-8",
            "module_directory": "/c",
            "result_cache": 2 << 20,
            "result_age": 5.0,
        }

    @pytest.mark.parametrize(
        ("option", "text"),
        [
            ("--encoding nonsense", "Python knows no such encoding"),
            ("--answer object", "it is text, or bytes"),
            ("--engine-for j2=jinja2", "write .extension=engine"),
            ("--engine-for .j2=django", "no template engine is called 'django'; there are mako, jinja2"),
        ],
    )
    def test_renderer_mistakes(self, option: str, text: str) -> None:
        """A mistake in a renderer's options is named."""
        with pytest.raises(UsageError, match=text):
            parse(renderer.Options, *RENDERER, *option.split())

    def test_spooler(self, modules: Path) -> None:
        """A spooler is made of its handler module and its store, which is opened once as a check."""
        options = parse(spooler.Options, "--handler", "a_tasks", "--spool", "sqlite:tasks.sqlite", "--text")
        assert IService.providedBy(spooler.makeService(options))
        assert (modules / "tasks.sqlite").exists()

    @pytest.mark.parametrize(
        ("module", "arguments", "lacking"),
        [
            (node, "--handler no_such_module", "no_such_module"),
            (node, "--resource no_such_module.Root", "no_such_module"),
            (renderer, "--templates no/such/directory", "no/such/directory"),
            (spooler, "--handler no_such_module --spool sqlite:x.sqlite", "no_such_module"),
            (spooler, "--handler a_tasks --spool sqlite:no/such/directory/x", "no/such/directory/x"),
        ],
    )
    def test_can_not_start(self, modules: Path, module: Any, arguments: str, lacking: str) -> None:
        """Making a service without a required option fails, and the error names the option."""
        with pytest.raises(StartupError, match=lacking):
            module.makeService(parse(module.Options, *arguments.split()))
