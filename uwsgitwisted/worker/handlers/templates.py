"""The template directories: a name becomes a compiled template, and never leaves them.

A template is code of the operator's and may do what Python may. The name of one is anybody's: it comes from the
network, or out of ``<%include file="${...}"/>`` in a template that got it from there. So every name, whoever
asks, is opened by :func:`open_below`: each directory on the way is opened in the one before it, and a symbolic
link is followed only after it was resolved and found to stay inside, by opening what it was resolved to in the
same manner. Check and opening are one, so a link that is put there in between gains nothing. Not covered, since
no name tells: hard links and mounts, which somebody who may write to the directory can put into it.

Nothing is written to disk: the compiled form is kept in memory, for the templates used last.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from mako.exceptions import CompileException, SyntaxException, TemplateLookupException
from mako.lookup import TemplateCollection
from mako.template import ModuleInfo, Template

from uwsgitwisted.errors import MisuseError, UwsgiError

#: A compiled template takes tens of kilobytes; few sites have more of them than this.
CACHE_SIZE = 256
#: In nanoseconds. A file that was changed this shortly before it was read may change again with the same size
#: and the same times, since file systems count time in steps of up to two seconds: its status proves nothing.
SETTLED_AFTER = 2_000_000_000

_NAME_IN_ERRORS = 200
#: Where a template's module keeps its own Python code, which holds the lines' numbers.
_CODE = "_uwsgitwisted_code"

# O_PATH needs the right to pass through a directory only, not to list it; it is Linux's own.
_DIRECTORY = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC
# O_NONBLOCK: opening a pipe would wait for its other end.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

#: What a name must not be, and what to say then.
_REFUSED: tuple[tuple[Callable[[str], object], str], ...] = (
    (lambda name: not name, "it is empty"),
    (_UNPRINTABLE.search, "it holds a character that doesn't print"),
    (lambda name: "\\" in name, "it holds a backslash; '/' parts directories"),
    (lambda name: name.startswith("/"), "it begins with '/'; it is looked for below the template directories"),
    (lambda name: not {"", ".", ".."}.isdisjoint(name.split("/")), "a part of it is empty, '.' or '..'"),
)


class NoTemplate(MisuseError, TemplateLookupException):  # type: ignore[misc]  # Mako has no types
    """A name leads to no template. The text never tells where the directories are.

    :param name: the name.
    """

    def __init__(self, text: str = "", *, name: str = "", address: object = None) -> None:
        super().__init__(text, address=address)
        self.name = name


class TemplateRefused(NoTemplate):
    """The name can't be that of a regular file below the template directories."""


class TemplateMissing(NoTemplate):
    """There is no such file, or it can't be opened."""


class TemplateFailed(UwsgiError):
    """A template can't be compiled, or raised while it was rendered.

    :param name: which one; of those that a page consists of, the one whose line it is.
    :param line: its line, from 1; 0 if that isn't known.
    """

    def __init__(self, text: str = "", *, name: str = "", line: int = 0, address: object = None) -> None:
        super().__init__(text, address=address)
        self.name = name
        self.line = line


def name_from(value: object) -> str:
    """Return the name of a template as text: Python 2 peers send theirs as bytes.

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
    """Return *name* if it may be looked for.

    :raises TemplateRefused: if it may not; nothing was looked for.
    """
    for is_refused, reason in _REFUSED:
        if is_refused(name):
            raise _refusal(name, f"{reason}; name a file as 'mail/welcome.txt' does")
    return name


def _refusal(name: str, reason: str) -> TemplateRefused:
    return TemplateRefused(f"the template name {quote(name)} is refused: {reason}", name=name)


def quote(name: str) -> str:
    """Return *name* for an error's text: quoted, and not endless."""
    return repr(name if len(name) <= _NAME_IN_ERRORS else f"{name[:_NAME_IN_ERRORS]}...")


def open_below(directory: str, name: str) -> int:
    """Open the file *name* below *directory* for reading.

    Symbolic links are followed where they lead to something below *directory*, which may be a link itself.

    :param name: one that :func:`check_name` passed.
    :return: its file descriptor.
    :raises TemplateRefused: if a symbolic link leads outside.
    :raises OSError: if there is no such file or it can't be opened.
    """
    try:
        return _walk(directory, name)
    except OSError as error:
        # What O_NOFOLLOW says of a link, without O_DIRECTORY and with it.
        if error.errno not in (errno.ELOOP, errno.ENOTDIR):
            raise
    root = os.path.realpath(directory)
    path = os.path.realpath(os.path.join(root, name))
    if os.path.commonpath((root, path)) != root:
        raise _refusal(name, "a symbolic link leads out of the template directory")
    return _walk(root, os.path.relpath(path, root))


def _walk(directory: str, name: str) -> int:
    """Open *name* below *directory*, following no symbolic link on the way."""
    *parents, last = name.split("/")
    descriptor = os.open(directory, _DIRECTORY)
    try:
        for parent in parents:
            inner = os.open(parent, _DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        return os.open(last, _FILE, dir_fd=descriptor)
    finally:
        os.close(descriptor)


class _Stamp(NamedTuple):
    """What tells one state of a file from another: ctime besides mtime, since nobody can set it back."""

    device: int
    inode: int
    size: int
    modified: int
    changed: int

    @classmethod
    def of(cls, status: os.stat_result) -> _Stamp:
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class _Compiled(NamedTuple):
    """A template in memory, and the file that it was made of."""

    template: Template
    source: bytes
    stamp: _Stamp
    is_settled: bool


class TemplateDirectories(TemplateCollection):  # type: ignore[misc]  # Mako has no types
    """Finds templates by name in directories, compiles them, and sees when their files change.

    It is Mako's interface for that, and shares no code with Mako's own ``TemplateLookup``: that one follows
    symbolic links anywhere and compares times in whole seconds. Threads may share it.

    :param directories: where to look, in that order.
    :param default_filters: what ``${...}`` applies; None for Mako's own, which is no escaping.
    :param strict_undefined: whether an unknown name raises where the template merely looks at it.
    :param cache_size: how many templates to keep compiled, from 1.
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
        # Reentrant: the module-level code of a template runs while it is compiled, and may render another.
        self._lock = threading.RLock()

    def get_template(self, uri: object, relativeto: str | None = None) -> Template:
        """Return the template of that name, compiled anew if its file has changed.

        Mako calls it with what :meth:`adjust_uri` returned, and templates may call it with what they like.

        :param uri: the name, below the template directories.
        :raises TemplateRefused: if the name can't be one of ours.
        :raises TemplateMissing: if there is no such file.
        :raises TemplateFailed: if it can't be compiled.
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
        """Return the name, below the template directories, that a template means by *uri*.

        As everywhere in Mako, ``/base.html`` is in the template directory, ``base.html``, ``./base.html`` and
        ``../base.html`` are relative to the template that says so. The result has none of these signs.

        :param relativeto: the name of the template that says so; None for no one.
        :raises TemplateRefused: if it climbs out of the template directory, or :func:`check_name` refuses it.
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
        """Return the template as its file is now: *previous*, unless that has changed."""
        descriptor = self._open(name)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise _refusal(name, "it is no regular file")
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
        """Return the file descriptor of the first file of that name."""
        for directory in self.directories:
            try:
                return open_below(directory, name)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
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
    """Return what to raise when rendering the template *name* raised *error*: the same and the template's line.

    :param name: the template that was asked for; the line may be in one that it includes or inherits.
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
    """Return the template and the line in it where *error* was raised; *name* and 0 if no template was at work.

    Mako's own ``RichTraceback`` finds a module by a name in which ``a-b`` and ``a_b`` are the same.
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
    """Return the line of the template that a line of its Python module was made of; 0 if it isn't known."""
    # While the module's own code runs for the first time, only recent versions of Mako can tell it.
    loader = getattr(module.get("__loader__"), "get_source", None)
    code = module.get(_CODE) or (loader(module["__name__"]) if loader else None)
    if code is None:
        return 0
    lines: dict[int, int] = ModuleInfo.get_module_source_metadata(code)["line_map"]
    return lines.get(max((known for known in lines if known <= line), default=0), 0)
