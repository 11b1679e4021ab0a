"""Templates by name, compiled: compiles each when it is first asked for, and again when its file has changed.

The compiled templates that were used last are cached in memory.
"""

from __future__ import annotations

import linecache
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from uwsgitwisted.errors import StartupError
from uwsgitwisted.worker.templates.code_store import CodeStore
from uwsgitwisted.worker.templates.directories import Directories, Found, check_name, resolve
from uwsgitwisted.worker.templates.engines import DEFAULTS, engine_of, make_engine
from uwsgitwisted.worker.templates.errors import NoTemplate, TemplateFailed, failed
from uwsgitwisted.worker.templates.interface import EngineSettings, ITemplates, Outline
from uwsgitwisted.worker.templates.lines import failure, file_of, split_lines

#: How many compiled templates to cache. One takes tens of kilobytes, and few sites have more than this.
CACHE_SIZE = 256
#: How many resolved names are kept, and how long these are: they may come from callers.
_MAX_NAMES, _MAX_LENGTH = 4_096, 200


@dataclass(slots=True)
class Compiled:
    """A compiled template.

    :param name: its name.
    :param engine: its engine.
    :param template: what the engine has made of it.
    :param file: the file from which it was compiled.
    :param used: the request that used it last.
    """

    name: str
    engine: ITemplates
    template: Any
    file: Found
    used: int


class Uses(threading.local):
    """The templates that a request has used, for who asks; each thread has its own."""

    #: Their files by their names; None if nobody asks.
    files: dict[str, Found] | None = None
    #: Whether a template was asked for that isn't there, and may come, or that has changed meanwhile.
    incomplete: bool = False


class _Finder:
    """Finds templates for one engine.

    :param templates: where.
    :param engine: the engine's name.
    """

    def __init__(self, templates: Templates, engine: str) -> None:
        self._templates = templates
        self._engine = engine
        self._names: dict[tuple[object, str | None], str] = {}

    def find(self, name: object, relative_to: str | None = None) -> Any:
        """Return another template of the same engine."""
        compiled = self._templates.find(self.resolve(name, relative_to))
        if compiled.engine is not self._templates.engine(self._engine):
            text = f"a template for {self._engine} can't use it, since it is for another engine"
            raise failed(compiled.name, 0, text)
        return compiled.template

    def resolve(self, name: object, relative_to: str | None = None) -> str:
        """Return the name below the template directory."""
        if type(name) is not str or len(name) > _MAX_LENGTH:
            return resolve(name, relative_to)
        known = self._names.get((name, relative_to))
        if known is None:
            known = resolve(name, relative_to)
            if len(self._names) >= _MAX_NAMES:
                self._names.clear()
            self._names[name, relative_to] = known
        return known


class Templates:
    """Finds templates by name in directories, compiles them, and notices when their files change.

    It is thread-safe.

    :param directories: the directories to search, in order.
    :param settings: how the engines compile.
    :param engines: the engines by extensions, in addition to :data:`~.engines.DEFAULTS`.
    :param reload: whether to look for changes.
    :param cache_size: how many compiled templates to cache, at least 1.
    :param module_directory: where compiled templates are kept on disk; empty for nowhere.
    :raises StartupError: if something in that is not possible.
    """

    def __init__(
        self,
        directories: Sequence[str],
        settings: EngineSettings | None = None,
        *,
        engines: Mapping[str, str] | None = None,
        reload: bool = True,
        cache_size: int = CACHE_SIZE,
        module_directory: str = "",
    ) -> None:
        if cache_size < 1:
            raise StartupError(f"a cache of {cache_size} templates; it has to hold one at least")
        if not directories:
            raise StartupError("no template directory; name one with --templates")
        for directory in directories:
            if not os.path.isdir(directory):
                raise StartupError(f"--templates {directory}: there is no such directory")
        self._directories = Directories(directories)
        self._settings = settings or EngineSettings()
        self._engine_names = {**DEFAULTS, **(engines or {})}
        self._engines: dict[str, ITemplates] = {}
        self._reload = reload
        self._cache_size = cache_size
        self._store = CodeStore(module_directory, self._settings) if module_directory else None
        self._compiled: dict[str, Compiled] = {}
        self._request = 0
        #: What the request of a thread has used, once that is set to a dict.
        self.uses = Uses()
        # The lock is reentrant: a template's module-level code runs while it is compiled, and may render
        # another.
        self._lock = threading.RLock()
        # Errors in --imports, and a missing library, are found now.
        for name in {self._engine_names["*"], *(engines or {}).values()}:
            self.engine(name)

    def engine(self, name: str) -> ITemplates:
        """Return an engine, which is made when it is first needed.

        :raises StartupError: if what it needs isn't installed.
        """
        made = self._engines.get(name)
        if made is None:
            made = self._engines[name] = make_engine(name, self._settings, _Finder(self, name))
        return made

    def begin(self) -> None:
        """Begin a request: each file is looked at once more, when a template is first used."""
        self._request += 1  # a request in another thread that looks at it again does no harm

    def find(self, name: str) -> Compiled:
        """Return the template *name*, compiled again if its file has changed.

        :param name: a name that :func:`~.directories.check_name` allows.
        :raises TemplateRefused: if the name is not allowed.
        :raises TemplateMissing: if the file doesn't exist.
        :raises TemplateFailed: if the template can't be compiled.
        """
        request = self._request
        compiled = self._compiled.get(name)
        if compiled is None:
            compiled = self._find_again(name, request)
        elif compiled.used != request:
            if self._reload and not compiled.file.is_current():
                compiled = self._find_again(name, request)
            compiled.used = request
        used = self.uses.files
        if used is not None and used.setdefault(name, compiled.file) is not compiled.file:
            self.uses.incomplete = True
        return compiled

    def _find_again(self, name: str, request: int) -> Compiled:
        """Read the file; compile the template, unless it has changed in no way that matters."""
        with self._lock:
            previous = self._compiled.get(name)
            try:
                file = self._directories.read(check_name(name))
            except NoTemplate:
                self.uses.incomplete = True
                self._forget(name)
                raise
            if previous is not None and previous.file.source == file.source:
                if previous.file.stamp != file.stamp or previous.file.settled != file.settled:
                    previous.file = file
                return previous
            self._forget(name)
            compiled = self._compile(name, file, request)
            if len(self._compiled) >= self._cache_size:
                self._forget(min(self._compiled.values(), key=attrgetter("used")).name)
            self._compiled[name] = compiled
        return compiled

    def _forget(self, name: str) -> None:
        self._compiled.pop(name, None)
        linecache.cache.pop(file_of(name), None)

    def _compile(self, name: str, file: Found, request: int) -> Compiled:
        kind = engine_of(name, self._engine_names)
        try:
            engine = self.engine(kind)
        except StartupError as error:
            raise failed(name, 0, error.text) from error
        code = None if self._store is None else self._store.get(kind, name, file.source)
        if code is None:
            try:
                code = engine.translate(name, file.source)
            except TemplateFailed:
                raise
            except Exception as error:  # an engine may raise anything
                raise failure(name, error) from error
            if self._store is not None:
                self._store.put(kind, name, file.source, code)
        lines = split_lines(self._decoded(file))
        linecache.cache[file_of(name)] = (len(file.source), None, lines, file_of(name))
        try:
            template = engine.load(name, code)
        except NoTemplate:
            raise
        except Exception as error:
            raise failure(name, error) from error
        return Compiled(name, engine, template, file, request)

    def names(self) -> list[str]:
        """Return the names of all templates that the directories have, sorted."""
        return self._directories.names()

    def outline(self, name: str) -> Outline:
        """Return what the template *name* consists of; see :meth:`find` for the errors."""
        engine = self.engine(engine_of(check_name(name), self._engine_names))
        return engine.outline(name, self._directories.read(name).source)

    def source(self, name: str) -> str:
        """Return the source of the template *name*; see :meth:`find` for the errors."""
        return self._decoded(self._directories.read(check_name(name)))

    def _decoded(self, file: Found) -> str:
        return file.source.decode(self._settings.encoding, "replace")

    def compile_all(self) -> list[Exception]:
        """Compile all templates; return the errors of those that are broken.

        The cache is made large enough for them all.
        """
        broken: list[Exception] = []
        names = self.names()
        self._cache_size = max(self._cache_size, len(names))
        for name in names:
            try:
                self.find(name)
            except (NoTemplate, TemplateFailed) as error:
                broken.append(error)
        return broken
