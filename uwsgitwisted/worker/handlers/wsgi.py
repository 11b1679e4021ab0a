"""Web requests (modifiers 0 and 30): runs the WSGI applications that ``--wsgi`` and ``--mount`` name.

The files of ``--static`` are an application too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from http import HTTPStatus
from time import monotonic, time
from types import MappingProxyType
from typing import Any

from uwsgitwisted.access_log import AccessLog, Entry
from uwsgitwisted.errors import StartupError
from uwsgitwisted.wire.message import WSGI_STRIPPED
from uwsgitwisted.wire.packet import WSGI, Packet
from uwsgitwisted.wire.vars import text_variables
from uwsgitwisted.worker.compat.calls import process, worker_id
from uwsgitwisted.worker.compat.install import install
from uwsgitwisted.worker.compat.requests import web_request
from uwsgitwisted.worker.exchange import AnyExchange
from uwsgitwisted.worker.handlers.handler import StreamHandler
from uwsgitwisted.worker.handlers.module import load_module
from uwsgitwisted.worker.spec import ACCESS_LOG_FD
from uwsgitwisted.worker.web.environ import Environ, complete, read_request
from uwsgitwisted.worker.web.response import Application, FileWrapper, Response, StartResponse, run
from uwsgitwisted.worker.web.static import StaticFiles

#: The callable's name where only a module is named, as in uWSGI.
DEFAULT_CALLABLE = "application"

_TARGET = re.compile(r"(?P<module>[\w.]+)(:(?P<name>[\w.]+)(?P<call>\(\))?)?")


def load(
    applications: Mapping[str, str],
    *,
    static: Mapping[str, str] = MappingProxyType({}),
    chdir: str = "",
    env_file: str = "",
    access_log: str = "",
    multithread: bool = False,
) -> dict[int, StreamHandler]:
    """Import the applications and return the handlers of web requests, by modifier1.

    :param applications: their targets by the paths at which they are mounted; ``""`` is the root. A target is
        ``module:callable``, ``module:factory()``, or a module with a callable named ``application``.
    :param static: the directories whose files are sent, by the paths at which they are mounted.
    :param chdir: the directory to change to before; empty for none.
    :param env_file: a file of lines ``NAME=value``, which are set in the environment before; empty for none.
    :param access_log: the format of the access log, whose file the worker has; empty for none.
    :param multithread: whether several threads may call an application at once.
    :raises StartupError: if something can't be loaded; its text says why.
    """
    if env_file:
        os.environ.update(read_env_file(env_file))
    if chdir:
        try:
            os.chdir(chdir)
        except OSError as error:
            raise StartupError(f"--chdir {chdir}: {error.strerror}") from error
    mounted = {path: _application(target) for path, target in applications.items()}
    process.applications = tuple((path, chdir) for path in applications)
    mounted |= {path: StaticFiles(directory) for path, directory in static.items()}
    shared: Environ = {
        "wsgi.version": (1, 0),
        "wsgi.multithread": multithread,
        "wsgi.multiprocess": install().numproc > 1,
        "wsgi.run_once": False,
        "wsgi.input_terminated": True,
        "wsgi.file_wrapper": FileWrapper,
    }
    log = AccessLog(ACCESS_LOG_FD, access_log) if access_log else None
    find = _only(mounted[""]) if mounted.keys() == {""} else _by_path(mounted)

    def read(exchange: AnyExchange) -> Environ:
        variables, body = read_request(exchange.packet.payload, streamed=exchange.streamed)
        environ = complete(variables, exchange, body, shared)
        if exchange.packet.modifier1 == WSGI_STRIPPED:
            _strip_script(environ)
        return environ

    def serve(exchange: AnyExchange, environ: Environ) -> None:
        response, started = Response(exchange, environ), monotonic()
        web_request.response = response
        try:
            run(find(environ) or _not_found, environ, response)
        finally:
            web_request.response = None
            if log is not None:
                took, further = monotonic() - started, response.log_variables
                entry = Entry(environ, response.status, response.size, took, worker_id(), time(), further)
                log.write(entry)

    def refused(request: Packet, status: HTTPStatus, size: int) -> None:
        if log is not None:
            variables = text_variables(request.payload)
            log.write(Entry(variables, str(status.value), size, 0.0, worker_id(), time()))

    return dict.fromkeys((WSGI, WSGI_STRIPPED), StreamHandler(serve, read, refused))


def _not_found(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """Be the application of the paths at which none is mounted."""
    start_response("404 Not Found", [("Content-Type", "text/plain")])
    return [b"404 Not Found\n"]


def _application(target: str) -> Application:
    """Import an application.

    :raises StartupError: if that is not possible.
    """
    parts = _TARGET.fullmatch(target)
    if parts is None:
        raise StartupError(f"--wsgi {target}: write 'module:callable', or 'module:factory()'")
    module = load_module(parts["module"], "wsgi")
    name = parts["name"] or DEFAULT_CALLABLE
    found: Any = module
    try:
        for part in name.split("."):
            found = getattr(found, part)
    except AttributeError:
        raise StartupError(f"--wsgi {target}: the module {parts['module']!r} has no {name!r}") from None
    if parts["call"]:
        try:
            found = found()
        except (Exception, SystemExit) as error:
            raise StartupError(f"--wsgi {target}: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise StartupError(f"--wsgi {target}: {name!r} is a {type(found).__name__}, no WSGI application")
    application: Application = found
    return application


def _only(application: Application) -> Callable[[Environ], Application | None]:
    return lambda _: application


def _by_path(mounted: Mapping[str, Application]) -> Callable[[Environ], Application | None]:
    """Return what finds the application of a request by its path, the longest mount first."""
    paths = ((os.fsencode(path).decode("latin-1"), application) for path, application in mounted.items())
    mounts = sorted(paths, key=lambda item: -len(item[0]))

    def find(environ: Environ) -> Application | None:
        path = environ["PATH_INFO"]
        for mount, application in mounts:
            if _is_below(path, mount):
                environ["SCRIPT_NAME"] += mount
                environ["PATH_INFO"] = path[len(mount) :]
                return application
        return None

    return find


def _strip_script(environ: Environ) -> None:
    """Remove SCRIPT_NAME, which the web server has set, from the path, as uWSGI does for modifier 30."""
    script = environ["SCRIPT_NAME"] = environ["SCRIPT_NAME"].rstrip("/")
    if _is_below(environ["PATH_INFO"], script):
        environ["PATH_INFO"] = environ["PATH_INFO"][len(script) :]


def _is_below(path: str, parent: str) -> bool:
    """Whether *path* is *parent*, or below it."""
    return path.startswith(parent) and path[len(parent) : len(parent) + 1] in ("", "/")


def read_env_file(path: str) -> dict[str, str]:
    """Read a file of lines ``NAME=value``, as systemd's ``EnvironmentFile=`` and Docker have it.

    Empty lines, and those that begin with ``#``, mean nothing; ``export`` in front and quotes around the value
    are dropped.

    :raises StartupError: if the file can't be read, or a line is something else.
    """
    values: dict[str, str] = {}
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise StartupError(f"--env-file {path}: {getattr(error, 'strerror', None) or error}") from error
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        name, separator, value = text.removeprefix("export ").partition("=")
        if not separator or not name.strip().isidentifier() or "\0" in value:
            raise StartupError(f"--env-file {path}, line {number}: write NAME=value")
        value = value.strip()
        if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        values[name.strip()] = value
    return values
