"""The template directories: finds and compiles templates by name, and never reads a file outside of them.

A template is the operator's code and may do whatever Python can. Its name is not trusted: it comes from the
network, or from ``<%include file="${...}"/>`` in a template that got it from the network. So every file is
opened by :func:`uwsgitwisted.files.open_below`, which follows no link that leads out of the directory.

Nothing is written to disk: the compiled templates that were used last are cached in memory.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

from mako.exceptions import CompileException, SyntaxException, TemplateLookupException
from mako.lookup import TemplateCollection
from mako.template import ModuleInfo, Template

from uwsgitwisted.errors import MisuseError, UwsgiError
from uwsgitwisted.files import LEADS_OUT, open_below, why_refused

#: How many compiled templates to cache. One takes tens of kilobytes, and few sites have more than this.
CACHE_SIZE = 256
#: In nanoseconds. If a file was changed less than this before it was read, it may change again and keep its
#: size and its times, since file systems count time in steps of up to two seconds. Its status then proves
#: nothing.
SETTLED_AFTER = 2_000_000_000

_NAME_IN_ERRORS = 200
#: The name in a template's module of its own Python code, which has the line numbers.
_CODE = "_uwsgitwisted_code"


class NoTemplate(MisuseError, TemplateLookupException):  # type: ignore[misc]  # Mako has no types
    """No template has this name. The text never reveals where the directories are.

    :param name: the name.
    """

    def __init__(self, text: str = "", *, name: str = "", address: object = None) -> None:
        super().__init__(text, address=address)
        self.name = name


class TemplateRefused(NoTemplate):
    """The name can't belong to a regular file below the template directories."""


class TemplateMissing(NoTemplate):
    """The file doesn't exist or can't be opened."""


class TemplateFailed(UwsgiError):
    """Compiling or rendering a template failed.

    :param name: the template that contains the line; a page may consist of several templates.
    :param line: the line, from 1; 0 if it isn't known.
    """

    def __init__(self, text: str = "", *, name: str = "", line: int = 0, address: object = None) -> None:
        super().__init__(text, address=address)
        self.name = name
        self.line = line


def name_from(value: object) -> str:
    """Return the name of a template as text; Python 2 peers send it as bytes.

    :raises TemplateRefused: if it is neither text nor UTF-8.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise TemplateRefused("the template's name is not UTF-8") from None
    raise TemplateRefused(
        f"the template's name is a {type(value).__name__}; send text such as 'mail/welcome.txt'"
    )


def check_name(name: str) -> str:
    """Return *name* if it is allowed.

    :raises TemplateRefused: if it isn't; nothing was looked up.
    """
    reason = why_refused(name)
    if reason is not None:
        raise _refusal(name, f"{reason}; name a file as 'mail/welcome.txt' does")
    return name


def _refusal(name: str, reason: str) -> TemplateRefused:
    return TemplateRefused(f"the template name {quote(name)} is refused: {reason}", name=name)


def quote(name: str) -> str:
    """Quote *name* for an error's text, and shorten it if it is long."""
    return repr(name if len(name) <= _NAME_IN_ERRORS else f"{name[:_NAME_IN_ERRORS]}...")


class _Stamp(NamedTuple):
    """Identifies one state of a file. It includes ctime besides mtime, since nobody can set ctime back."""

    device: int
    inode: int
    size: int
    modified: int
    changed: int

    @classmethod
    def of(cls, status: os.stat_result) -> _Stamp:
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class _Compiled(NamedTuple):
    """A compiled template, and the state of the file from which it was compiled."""

    template: Template
    source: bytes
    stamp: _Stamp
    is_settled: bool


class TemplateDirectories(TemplateCollection):  # type: ignore[misc]  # Mako has no types
    """Finds templates by name in directories, compiles them, and notices when their files change.

    It implements Mako's interface, and shares no code with Mako's ``TemplateLookup``, which follows symbolic
    links anywhere and compares times in whole seconds. It is thread-safe.

    :param directories: the directories to search, in order.
    :param default_filters: the filters of each ``${...}``; None for Mako's default, which doesn't escape.
    :param strict_undefined: whether each use of an unknown name raises, even a test of it.
    :param cache_size: how many compiled templates to cache, at least 1.
    """

    def __init__(
        self,
        directories: Sequence[str],
        *,
        default_filters: Sequence[str] | None = None,
        strict_undefined: bool = False,
        cache_size: int = CACHE_SIZE,
    ) -> None:
        self.directories = tuple(directories)
        self._options = {
            "default_filters": None if default_filters is None else list(default_filters),
            "strict_undefined": strict_undefined,
        }
        self._cache_size = cache_size
        self._compiled: OrderedDict[str, _Compiled] = OrderedDict()
        # The lock is reentrant: a template's module-level code runs while it is compiled, and may render
        # another.
        self._lock = threading.RLock()

    def get_template(self, uri: object, relativeto: str | None = None) -> Template:
        """Return the template *uri*, compiled again if its file has changed.

        Mako calls this with a name from :meth:`adjust_uri`; templates may call it with any value.

        :param uri: the name, below the template directories.
        :raises TemplateRefused: if the name is not allowed.
        :raises TemplateMissing: if the file doesn't exist.
        :raises TemplateFailed: if the template can't be compiled.
        """
        name = self.adjust_uri(uri, relativeto)
        with self._lock:
            previous = self._compiled.pop(name, None)
            current = self._load(name, previous)
            self._compiled[name] = current
            while len(self._compiled) > self._cache_size:
                self._compiled.popitem(last=False)
        return current.template

    def adjust_uri(self, uri: object, relativeto: str | None) -> str:
        """Resolve *uri* to a name below the template directories.

        As everywhere in Mako, ``/base.html`` is relative to the template directory, and ``base.html``,
        ``./base.html`` and ``../base.html`` are relative to the template that contains them. The result has no
        leading slash and no dots.

        :param relativeto: the name of the template that contains *uri*; None if there is none.
        :raises TemplateRefused: if *uri* leads out of the template directory, or :func:`check_name` refuses it.
        """
        name = name_from(uri)
        parts = [] if relativeto is None or name.startswith("/") else relativeto.split("/")[:-1]
        for part in name.removeprefix("/").split("/"):
            if part == "..":
                if not parts:
                    raise _refusal(name, "'..' leads out of the template directory")
                parts.pop()
            elif part != ".":
                parts.append(part)
        return check_name("/".join(parts))

    def _load(self, name: str, previous: _Compiled | None) -> _Compiled:
        """Return the template: *previous* if its file hasn't changed, else compiled again."""
        descriptor = self._open(name)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise _refusal(name, "it is not a regular file")
            stamp = _Stamp.of(status)
            if previous is not None and previous.is_settled and previous.stamp == stamp:
                return previous
            is_settled = time.time_ns() - stamp.changed > SETTLED_AFTER
            with open(descriptor, "rb", closefd=False) as stream:
                source = stream.read()
        finally:
            os.close(descriptor)
        if previous is not None and previous.source == source:
            return _Compiled(previous.template, source, stamp, is_settled)
        return _Compiled(self._compile(name, source), source, stamp, is_settled)

    def _open(self, name: str) -> int:
        """Open the first file with that name, and return its descriptor."""
        for directory in self.directories:
            try:
                return open_below(directory, name)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                if error.errno == LEADS_OUT:
                    raise _refusal(name, "a symbolic link leads out of the template directory") from None
                raise TemplateMissing(
                    f"the template {quote(name)} can't be opened: {error.strerror}", name=name
                ) from None
        raise TemplateMissing(f"there is no template {quote(name)} in the template directories", name=name)

    def _compile(self, name: str, source: bytes) -> Template:
        try:
            template = Template(text=source, uri=name, lookup=self, **self._options)  # noqa: S702
        except (SyntaxException, CompileException) as error:
            message = str(error).removesuffix(f" at line: {error.lineno} char: {error.pos}")
            raise _failure(name, error.lineno, message) from error
        except Exception as error:
            raise failure(name, error) from error
        vars(template.module)[_CODE] = template.code
        return template


def failure(name: str, error: Exception) -> UwsgiError:
    """Add the template's line to *error*, which rendering the template *name* raised.

    :param name: the requested template; the line may be in one that it includes or inherits.
    :return: the exception to raise.
    """
    where, line = _innermost_line(error, name)
    if isinstance(error, NoTemplate):
        return type(error)(f"{error.text}; {_place(where, line)} asks for it", name=error.name)
    return _failure(where, line, f"{type(error).__name__}: {error}")


def _failure(name: str, line: int, message: str) -> TemplateFailed:
    return TemplateFailed(f"{_place(name, line)}: {message}", name=name, line=line)


def _place(name: str, line: int) -> str:
    return f"template {quote(name)}, line {line}" if line else f"template {quote(name)}"


def _innermost_line(error: Exception, name: str) -> tuple[str, int]:
    """Return the template and its line where *error* was raised; *name* and 0 if no template was running.

    Mako's ``RichTraceback`` doesn't serve: it finds modules by a name in which ``a-b`` and ``a_b`` are the
    same.
    """
    innermost = None
    frames = error.__traceback__
    while frames is not None:
        if "_template_uri" in frames.tb_frame.f_globals:
            innermost = frames
        frames = frames.tb_next
    if innermost is None:
        return name, 0
    module = innermost.tb_frame.f_globals
    return module["_template_uri"], _template_line(module, innermost.tb_lineno)


def _template_line(module: dict[str, Any], line: int) -> int:
    """Return the template's line for a line of its Python module; 0 if it isn't known."""
    # While the module's own code runs for the first time, only recent versions of Mako know the line.
    loader = getattr(module.get("__loader__"), "get_source", None)
    code = module.get(_CODE) or (loader(module["__name__"]) if loader else None)
    if code is None:
        return 0
    lines: dict[int, int] = ModuleInfo.get_module_source_metadata(code)["line_map"]
    return lines.get(max((known for known in lines if known <= line), default=0), 0)
