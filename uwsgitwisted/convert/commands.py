"""Makes the commands of a plan: a node, a spooler and a router."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from uwsgitwisted.convert.endpoints import endpoint, port_of, reached_at
from uwsgitwisted.convert.plan import Plan, RefusedValue

#: The first ports that are tried for a spooler, and for a node, that had none.
_SPOOLER_PORT, _NODE_PORT = 3034, 3031


@dataclass
class Command:
    """A command line of ``twistd``.

    :param name: what its unit is called.
    :param service: the command, such as ``uwsgi-node``.
    :param twistd: the program.
    :param directory: where it runs.
    :param before: options of twistd itself.
    """

    name: str
    service: str
    twistd: str
    directory: str
    before: list[str] = field(default_factory=list)
    options: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def line(self) -> list[str]:
        """The program and its arguments."""
        return [self.twistd, "-n", *self.before, self.service, *self.options]

    def shell(self, *identity: str) -> str:
        """Return a line for a shell.

        :param identity: options of twistd that change the user.
        """
        assignments = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        place = f"cd {shlex.quote(self.directory)} &&"
        return " ".join([place, *assignments, shlex.join([self.twistd, "-n", *identity, *self.line[2:]])])


def _free_ports(first: int, *addresses: str) -> Iterator[int]:
    """Yield the ports from *first* on that none of *addresses* has."""
    used = {port_of(value) for value in addresses}
    return (port for port in range(first, 65_536) if port not in used)


class Builder:
    """Makes commands of a plan.

    :ivar problems: what could not be converted, and what to do.
    :ivar notes: where our defaults differ from uWSGI's.
    """

    def __init__(self, plan: Plan) -> None:
        self.problems: list[str] = []
        self.notes: list[str] = []
        self._plan = plan
        self._paths = [plan.absolute(path) for path in plan.list("pythonpath")]
        self._sockets = plan.list("socket")
        self._http = plan.list("http")
        if plan.values.get("protocol") == "http":
            self._sockets, self._http = [], [*self._sockets, *self._http]
        self._application = self._find_application()
        self._mounts = [mount for each in plan.list("mount") if (mount := self._mount(each))]
        self._static = [static for each in plan.list("static") if (static := self._static_map(each))]

    def build(self) -> list[Command]:
        """Return the commands; none if nothing is run."""
        plan = self._plan
        makers = {
            self._node: self._runs_web or (self._imports and not self._spools),
            self._spooler: self._spools,
            self._router: self._http or plan.list("https"),
        }
        commands = [make() for make, is_needed in makers.items() if is_needed]
        for command in commands[:1]:
            for name in ("pidfile", "logfile"):
                if value := plan.values.get(name, ""):
                    command.before += [f"--{name}", plan.absolute(value)]
        return commands

    @property
    def node_address(self) -> str:
        """Where the node is reached."""
        for value in self._sockets:
            try:
                return reached_at(self._plan, value)
            except RefusedValue:
                continue
        return f"127.0.0.1:{next(_free_ports(_NODE_PORT, *self._http, *self._plan.list('https')))}"

    def _spooler_ports(self) -> Iterator[int]:
        """Yield the port of a spooler that has no socket of its own, and further ones that are free."""
        lists = ("https", "ssl", "stats addresses")
        others = (value for name in lists for value in self._plan.list(name))
        return _free_ports(_SPOOLER_PORT, self.node_address, *self._sockets, *self._http, *others)

    @property
    def statics(self) -> list[tuple[str, str]]:
        """The paths of static files, and their directories."""
        return self._static

    @property
    def low_ports(self) -> bool:
        """Whether a service listens where only root may."""
        values = (*self._sockets, *self._http, *self._plan.list("https"), *self._plan.list("ssl"))
        return any(0 < port_of(value) < 1024 for value in values)

    @property
    def _spools(self) -> list[str]:
        return self._plan.list("spooler")

    @property
    def _imports(self) -> list[str]:
        return self._plan.list("spooler-import") or self._plan.list("import")

    def _try(self, option: str, value: str, make: Callable[..., str], **options: bool) -> list[str]:
        """Return an option with a converted value, or note why there is none."""
        try:
            return [option, make(self._plan, value, **options)]
        except RefusedValue as error:
            self.problems.append(f"{value}: {error}")
            return []

    def _command(self, kind: str) -> Command:
        plan = self._plan
        suffix = "" if kind == "node" else f"-{kind}"
        venv = plan.values.get("venv")
        programs = os.path.join(plan.absolute(venv), "bin") if venv else os.path.dirname(sys.executable)
        twistd = os.path.join(programs, "twistd")
        if not venv and not os.path.exists(twistd):
            twistd = "twistd"
        command = Command(f"{plan.name}{suffix}", f"uwsgi-{kind}", twistd, plan.home)
        if kind != "router":
            command.environment = self._environment()
        return command

    def _environment(self) -> dict[str, str]:
        plan = self._plan
        pairs = [each.partition("=")[::2] for each in plan.list("env")]
        found = {name.strip(): value for name, value in pairs if name.strip()}
        if self._paths:
            found["PYTHONPATH"] = ":".join(dict.fromkeys(self._paths))
        if plan.values.get("optimize", "0") != "0":
            found["PYTHONOPTIMIZE"] = plan.values["optimize"]
        return found

    def _node(self) -> Command:
        plan, command = self._plan, self._command("node")
        options = command.options
        options += self._listen() or ["--listen", f"tcp:{self.node_address.rpartition(':')[2]}"]
        options += self._applications()
        options += self._static_options()
        if not self._spools and self._imports:
            options += self._handler()
            self.notes.append("a module for `--handler` has to register something: leave out one that doesn't")
        options += ["--chdir", plan.home] if self._runs_web else []
        options += ["--engine", f"processes:{self._processes()}"]
        self._add_options(options, "node")
        options += plan.list("node options")
        options += [word for place in plan.list("stats") for word in ("--stats", place)]
        self._add_files(options)
        if self._spools or plan.list("spooler-external"):
            address = f"127.0.0.1:{next(self._spooler_ports())}"
            command.environment["UWSGITWISTED_SPOOLER"] = address
            if not self._spools:
                self.notes.append(
                    f"UWSGITWISTED_SPOOLER={address} is a guess: write the address there at which the external "
                    "spooler listens"
                )
        if "--timeout" not in plan.options["node"]:
            self.notes.append("harakiri is not set: here `--timeout` is 60 seconds, unless you give another")
        return command

    def _listen(self) -> list[str]:
        """Return the endpoints of the configuration."""
        found = [word for value in self._sockets for word in self._try("--listen", value, endpoint)]
        for value in self._plan.list("ssl"):
            found += self._try("--listen", value, endpoint, tls=True)
        return found

    def _applications(self) -> list[str]:
        found = ["--wsgi", self._application] if self._application else []
        return found + [word for path, target in self._mounts for word in ("--mount", f"{path}={target}")]

    def _static_options(self) -> list[str]:
        return [word for path, directory in self._static for word in ("--static", f"{path}={directory}")]

    def _processes(self) -> int:
        processes = int(self._plan.values.get("processes", "0"))
        if not processes:
            self.notes.append("processes is not set: `--engine processes:1`, which is uWSGI's default")
        return max(1, processes)

    def _add_options(self, options: list[str], service: str) -> None:
        for name, value in self._plan.options[service].items():
            if (name, value) != ("--wsgi-threads", "1"):
                options += [name] if value is None else [name, value]
        for path in self._plan.list(f"touch {service}"):
            options += ["--touch-reload", self._plan.absolute(path)]

    def _add_files(self, options: list[str]) -> None:
        """Add the node's options that name files."""
        plan = self._plan
        logger = plan.values.get("req-logger", "")
        if logger.startswith("file:"):
            options += ["--access-log", plan.absolute(logger.removeprefix("file:"))]
        elif self._runs_web and not plan.values.get("quiet"):
            options += ["--access-log", "-"]

    @property
    def _runs_web(self) -> bool:
        return bool(self._application or self._mounts or self._static)

    def _spooler(self) -> Command:
        plan, command = self._plan, self._command("spooler")
        directory = plan.absolute(self._spools[0])
        ports = self._spooler_ports()
        first = next(ports)
        for other, port in zip(self._spools[1:], ports, strict=False):
            self.problems.append(
                f"spooler = {other}: one spooler has any number of queues, which tasks name with `spooler=`; "
                "the tasks in this directory need a command of their own: "
                f"`--listen tcp:{port} --drain dir:{plan.absolute(other)}`"
            )
        command.options = [*self._spooler_listen(first), *self._handler()]
        if self._imports:
            self.notes.append(
                "`--handler` is the spooler's: if its module has RPC, signals or mules, give it to the node too"
            )
        command.options += ["--spool", f"sqlite:{directory}.sqlite", "--drain", f"dir:{directory}"]
        self._add_options(command.options, "spooler")
        if "--workers" not in plan.options["spooler"]:
            command.options += ["--workers", "1"]
            self.notes.append("spooler-processes is not set: `--workers 1`, which is uWSGI's default")
        command.directory = plan.absolute(plan.values.get("spooler-chdir", ""))
        return command

    def _spooler_listen(self, port: int) -> list[str]:
        """Return the spooler's endpoints: the sockets, if no node has them, or else a port of its own."""
        if not self._runs_web and (found := self._listen()):
            places = ", ".join(found[1::2])
            self.notes.append(
                f"there is no node, so the spooler listens at {places}, where uWSGI takes tasks too"
            )
            return found
        told = " and UWSGITWISTED_SPOOLER" if self._runs_web else ""
        self.notes.append(
            f"the spooler listens on port {port} of loopback, which is free in this configuration; if another "
            f"service on the machine has it, change `--listen`{told}"
        )
        return ["--listen", f"tcp:{port}"]

    def _router(self) -> Command:
        plan, command = self._plan, self._command("router")
        for value in self._http:
            command.options += self._try("--http", value, endpoint)
        for value in plan.list("https"):
            command.options += self._try("--https", value, endpoint, tls=True)
        for value in plan.list("nodes") or [self.node_address]:
            command.options += self._try("--nodes", value, reached_at)
        command.options += self._static_options()
        self._add_options(command.options, "router")
        return command

    def _handler(self) -> list[str]:
        """Return the option that names the handler module."""
        modules = [module for each in self._imports if (module := self._module(each))]
        if not modules and self._application:
            modules = [self._application.partition(":")[0]]
        if len(modules) > 1:
            self.problems.append(
                f"write a module that imports {', '.join(modules)}, and give its name to `--handler`"
            )
        elif not modules:
            self.problems.append("nothing is imported that has functions for tasks: add `--handler MODULE`")
        return ["--handler", modules[0]] if modules else []

    def _find_application(self) -> str:
        values = self._plan.values
        module = values.get("module", "")
        if path := values.get("wsgi-file", ""):
            module = self._module(path)
        module, _, name = module.partition(":")
        name = name or values.get("callable", "")
        return f"{module}:{name}" if module and name else module

    def _module(self, text: str) -> str:
        """Return the name of a module, which may be given as a file; its directory becomes part of the path."""
        path, colon, name = text.partition(":")
        if not path.endswith(".py"):
            return text
        full = self._plan.absolute(path)
        inside = os.path.relpath(full, self._plan.home).removesuffix(".py").split("/")
        if not all(map(str.isidentifier, inside)):
            inside = inside[-1:]
            self._paths.append(os.path.dirname(full))
        if not inside[0].isidentifier():
            self.problems.append(f"{path}: rename it so that Python can import it, without - and dots")
            return ""
        return ".".join(inside) + colon + name

    def _mount(self, text: str) -> tuple[str, str] | None:
        path, _, target = text.partition("=")
        module = self._module(target)
        if not path.startswith("/") or not module:
            self.problems.append(
                f"mount = {text}: only `/path=module:callable`; for hosts, a `server` of nginx for each"
            )
            return None
        name = self._plan.values.get("callable", "")
        return path, f"{module}:{name}" if name and ":" not in module else module

    def _static_map(self, text: str) -> tuple[str, str] | None:
        path, equals, directory = text.partition("=")
        full = self._plan.absolute(directory)
        if not equals or not path.startswith("/") or os.path.isfile(full):
            self.problems.append(
                f"static-map = {text}: `--static` takes a path and a directory; for a file, nginx"
            )
            return None
        return path, full
