"""Reads a configuration with all files that it names, in the order and with the result of uWSGI."""

from __future__ import annotations

import os
import stat

from uwsgitwisted.convert.formats import PARSERS, FormatError, parse_ini, parse_json, parse_xml, parse_yaml
from uwsgitwisted.convert.logic import ENDS, is_block, words_of
from uwsgitwisted.convert.placeholders import (
    calculate,
    expand,
    file_variables,
    machine_variables,
    replace_magic,
)
from uwsgitwisted.convert.setting import Place, Setting
from uwsgitwisted.errors import ConfigurationError

#: How large a file may be, in bytes; how many files are read, how deep within each other, and how many options.
#: Files may name themselves, or each other, which uWSGI follows without an end.
MAX_FILE, MAX_FILES, MAX_DEPTH, MAX_SETTINGS = 1 << 20, 100, 16, 10_000

#: The options that read another file at once, with its format if that isn't in the file's name.
_LOADERS = {
    "ini": parse_ini,
    "yaml": parse_yaml,
    "yml": parse_yaml,
    "xml": parse_xml,
    "xmlconfig": parse_xml,
    "json": parse_json,
    "js": parse_json,
    "include": None,
    "config": None,
}
#: The options that set another one.
_SETTERS = ("set", "set-placeholder", "set-ph")


def read_configuration(name: str, directory: str) -> list[Setting]:
    """Read a configuration.

    :param name: the file, such as ``app.ini``, or ``app.ini:section``.
    :param directory: the directory in which uWSGI starts, for the names of files.
    :return: all options, in the order of uWSGI's ``--show-config``; placeholders are replaced.
    :raises ConfigurationError: if a file can't be read, or has no such section, or is wrong.
    """
    reader = _Reader(os.path.abspath(directory))
    reader.load(name, Place(name), _LOADERS[_kind(name)] if _kind(name) else None)
    reader.replace_placeholders()
    reader.inherit()
    return reader.settings


def _kind(name: str) -> str:
    """Return the option that would load the file *name*."""
    extension = os.path.splitext(name.partition(":")[0])[1].lstrip(".")
    return extension if extension in _LOADERS else ""


class _Reader:
    """The state while files are read.

    :param directory: the directory in which uWSGI starts.
    """

    def __init__(self, directory: str) -> None:
        self.settings: list[Setting] = []
        self._directory = directory
        self._variables = machine_variables(directory)
        self._files = self._depth = 0
        self._last_ini = ""
        #: The option that began a block, and its value.
        self._block: tuple[str, str] | None = None
        self._in_block = False

    def find(self, key: str) -> str | None:
        """Return the value of the first option *key*."""
        return next((setting.value for setting in self.settings if setting.key == key), None)

    def load(self, name: str, place: Place, parser: object) -> None:
        """Read the file *name*, or ``FILE:SECTION``, or ``:SECTION`` of the last ini file."""
        self._files += 1
        self._depth += 1
        if self._files > MAX_FILES or self._depth > MAX_DEPTH:
            raise place.error(f"{name}: files that include each other, or more than {MAX_FILES} of them")
        path, _, section = name.rpartition(":") if ":" in name else (name, "", "")
        if "://" in name:
            raise place.error(f"{name}: only files are read; save it, and name the file")
        parse = parser or PARSERS.get(os.path.splitext(name)[1])
        if not callable(parse):
            raise place.error(f"{name}: uWSGI reads names that end with .ini, .yaml, .yml, .xml or .json here")
        if path:
            self._describe(path, section)
        else:
            path, self._variables["x"] = self._last_ini, section
        if parse is parse_ini:
            self._last_ini = path
        text = replace_magic(self._read(path, place), self._variables, path)
        count = len(self.settings)
        try:
            for entry in parse(text, section or "uwsgi"):
                self._add(entry.key, entry.value, Place(path, entry.line))
        except FormatError as error:
            raise Place(path, error.line).error(str(error)) from error
        if count == len(self.settings):
            raise place.error(f"{path} has no option in a section {section or 'uwsgi'!r}")
        self._depth -= 1

    def _describe(self, path: str, section: str) -> None:
        """Set the magic variables of a file; those of the first one stay, with capital letters."""
        found = file_variables(path, section, self._directory)
        first = {} if "P" in self._variables else {key.upper(): found[key] for key in "odspcenxij"}
        self._variables.update({**found, **first})

    def _read(self, path: str, place: Place) -> str:
        """Return the text of a file of bounded size."""
        full = os.path.join(self._directory, path)
        try:
            if not stat.S_ISREG(os.stat(full).st_mode):
                raise place.error(f"{full} is not a file")
            with open(full, encoding="utf-8", errors="surrogateescape", newline="") as file:
                text = file.read(MAX_FILE + 1)
        except ConfigurationError:
            raise
        except (OSError, ValueError) as error:
            raise place.error(f"{full}: {getattr(error, 'strerror', error)}") from error
        if len(text) > MAX_FILE:
            raise place.error(f"{full} has more than {MAX_FILE} characters")
        return text

    def _add(self, key: str, value: str, place: Place) -> None:
        """Add an option as often as the block says in which it stands."""
        if self._in_block:
            self._store(key, value, place)
            return
        if key in ENDS:
            self._block = None
        if self._block is None:
            self._store(key, value, place)
            return
        if is_block(key):
            raise place.error(f"{key} within {self._block[0]}: uWSGI has no blocks within blocks")
        self._in_block = True
        for word in words_of(*self._block, self.find, self._directory, place):
            self._store(key, value.replace("%(_)", word), place)
        self._in_block = False

    def _store(self, key: str, value: str, place: Place) -> None:
        """Add an option, and do at once what it asks for."""
        if len(self.settings) >= MAX_SETTINGS:
            raise place.error(f"there are more than {MAX_SETTINGS} options")
        immediate = key in _LOADERS or key in _SETTERS or is_block(key)
        self.settings.append(Setting(key, value, place, is_final=immediate))
        if key in _LOADERS:
            self.load(value, place, _LOADERS[key])
        elif key in _SETTERS:
            name, equals, text = value.partition("=")
            if not equals:
                raise place.error(f"{key} = {value}: write {key} = name=value")
            self._store(name, text, place)
            self.settings[-1].is_final |= key != "set"
        elif is_block(key):
            self._block = (key, value)

    def replace_placeholders(self) -> None:
        """Replace environment variables, then files, then other options, everywhere."""
        finders = (("$", os.environ.get), ("@", self._contents), ("%", lambda text: calculate(text, self.find)))
        for symbol, find in finders:
            for setting in self.settings:
                if not setting.is_final:
                    self._current = setting.place
                    setting.value = expand(setting.value, symbol, find, setting.place)

    def _contents(self, path: str) -> str:
        """Return what a file holds, without the end of its last line."""
        if "://" in path:
            raise self._current.error(f"@({path}): only files are read; save it, and name the file")
        text = self._read(path, self._current)
        return text[:-1] if text.endswith(("\n", "\r")) else text

    def inherit(self) -> None:
        """Add the options of the files that ``inherit`` names; uWSGI doesn't replace placeholders in them."""
        for setting in self.settings:  # it grows
            if setting.key == "inherit":
                self._depth = 0
                self.load(setting.value, setting.place, None)
