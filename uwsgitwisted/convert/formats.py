"""Parses the formats of configuration files, as uWSGI does: ini, YAML, XML and JSON.

A parser takes the text and the name of a section, and gives keys, values and numbers of lines. What uWSGI
itself would skip in silence is an error.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from xml.parsers import expat

_BLANK = " \t\r"


class Entry(NamedTuple):
    """A key and its value, and the number of their line, or 0."""

    key: str
    value: str
    line: int


class FormatError(Exception):
    """A file can't be parsed.

    :param line: the number of the line, or 0.
    """

    def __init__(self, text: str, line: int = 0) -> None:
        super().__init__(text)
        self.line = line


def parse_ini(text: str, section: str) -> Iterator[Entry]:
    """Parse an ini file: ``key = value``, or a key alone, which has an empty value.

    A section may occur several times, and a key too. There are comments on lines of their own only.
    """
    current = None
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip(_BLANK)
        if line.startswith("["):
            current = line[1:-1]
        elif line and line[0] not in ";#" and current == section:
            key, _, value = line.partition("=")
            yield Entry(key.rstrip(_BLANK), value.strip(_BLANK), number)


def parse_yaml(text: str, section: str) -> Iterator[Entry]:
    """Parse the part of YAML that uWSGI reads: a mapping of scalars, and lists of them, below the section.

    :raises FormatError: at any other form of YAML.
    """
    inside, key = False, ""
    for number, line in enumerate(text.split("\n"), 1):
        content = _without_comment(line)
        if not content.strip() or content.strip() in ("---", "..."):
            continue
        if "\t" in content[: len(content) - len(content.lstrip())]:
            raise FormatError("YAML is not indented with tabs", number)
        if not content.startswith((" ", "-")):
            inside = _scalar(content.rstrip().removesuffix(":"), number) == section
            continue
        if inside:
            key, value = _yaml_line(content.strip(), key, number)
            if value is not None:
                yield Entry(key, value, number)


def _yaml_line(content: str, key: str, number: int) -> tuple[str, str | None]:
    """Parse ``key: value``, or ``- value`` for the last key; None as the value of a key with a list."""
    if content.startswith("- ") and key:
        return key, _scalar(content[2:].strip(), number)
    key, colon, value = content.partition(":")
    if not colon or content.startswith("-") or (value and value[0] != " "):
        raise FormatError(f"write 'key: value' instead of {content!r}", number)
    value = value.strip()
    return _scalar(key.strip(), number), _scalar(value, number) if value else None


def _without_comment(line: str) -> str:
    """Remove a comment, which begins after a blank or at the line's beginning."""
    quote = ""
    for index, letter in enumerate(line):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"" and (not line[:index].strip(" -") or line[:index].endswith(": ")):
            quote = letter
        elif letter == "#" and (not index or line[index - 1] in " \t"):
            return line[:index]
    return line


def _scalar(text: str, number: int) -> str:
    """Return the value of a plain or quoted scalar."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        inner = text[1:-1]
        if text[0] == "'":
            return inner.replace("''", "'")
        if "\\" not in inner:
            return inner
    if text[:1] in tuple("'\"[{&*!|>") or text.startswith("%YAML"):
        raise FormatError(f"this form of YAML is not read here: {text!r}; write it as ini", number)
    return text


class _XmlReader:
    """Collects the options of an XML file: the elements within ``<uwsgi>``.

    :param section: the ``id`` of the element, or ``uwsgi`` for the first one.
    """

    def __init__(self, section: str) -> None:
        self.entries: list[Entry] = []
        self._id = section
        self._path: list[str] = []
        self._text = ""
        self._inside = self._found = False
        self._line = 0
        self.parser = parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._data
        parser.StartDoctypeDeclHandler = self._refuse

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if self._inside:
            if name == "app" or self._path[-1] != "uwsgi":
                raise FormatError(f"<{name}> has parts; write it as ini", self.parser.CurrentLineNumber)
            self._text, self._line = "", self.parser.CurrentLineNumber
        elif name == "uwsgi" and not self._found and self._id in ("uwsgi", attributes.get("id")):
            self._inside = self._found = True
        self._path.append(name)

    def _data(self, text: str) -> None:
        self._text += text

    def _end(self, name: str) -> None:
        self._path.pop()
        if self._inside and name == "uwsgi":
            self._inside = False
        elif self._inside:
            self.entries.append(Entry(name, self._text.strip() or "1", self._line))

    def _refuse(self, *_: object) -> None:
        raise FormatError("a document type is not read here", self.parser.CurrentLineNumber)


def parse_xml(text: str, section: str) -> Iterator[Entry]:
    """Parse an XML file: elements within ``<uwsgi>``; an empty one has the value ``1``.

    :raises FormatError: if it isn't well-formed, or has a document type.
    """
    reader = _XmlReader(section)
    try:
        reader.parser.Parse(text, True)
    except expat.ExpatError as error:
        raise FormatError(expat.ErrorString(error.code), error.lineno) from error
    yield from reader.entries


def parse_json(text: str, section: str) -> Iterator[Entry]:
    """Parse a JSON file: an object in the object *section*; a list gives an option several times.

    :raises FormatError: if it isn't JSON of this form.
    """
    try:
        document = json.loads(text, object_pairs_hook=_Pairs)
    except json.JSONDecodeError as error:
        raise FormatError(error.msg, error.lineno) from error
    except RecursionError as error:
        raise FormatError("it is nested too deeply") from error
    sections = [value for key, value in document if key == section] if isinstance(document, _Pairs) else []
    for options in sections[-1:]:
        if not isinstance(options, _Pairs):
            raise FormatError(f"{section!r} is not an object")
        for key, value in options:
            for each in value if type(value) is list else [value]:
                yield Entry(key, _json_value(key, each), 0)


class _Pairs(list[tuple[str, Any]]):
    """The keys and values of an object, in order."""


def _json_value(key: str, value: object) -> str:
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, (int, float)):
        return str(value)
    raise FormatError(f"the value of {key!r} is neither text nor a number")


#: The parsers, by the ends of the names of files.
PARSERS: dict[str, Callable[[str, str], Iterator[Entry]]] = {
    ".ini": parse_ini,
    ".yaml": parse_yaml,
    ".yml": parse_yaml,
    ".xml": parse_xml,
    ".json": parse_json,
    ".js": parse_json,
}
