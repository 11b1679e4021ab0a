"""Parses the forms that browsers post, for ``request.args``.

twisted.web's own parser takes seconds for a megabyte that is made for it, and everybody would wait meanwhile.
This one refuses what would take long because of its many parts: little more is left than to copy the values.
"""

from __future__ import annotations

import re

from twisted.web.http import parse_qs

from uwsgitwisted.errors import MessageTooLarge, ProtocolError

#: The most fields of a form, or of a query.
MAX_FIELDS = 10_000
#: The most escaped bytes of such a form.
MAX_ESCAPES = 250_000
#: The most bytes that the headers of all parts of a form may have.
MAX_HEADERS = 256 * 1024
#: The longest boundary (RFC 2046, 5.1.1).
_MAX_BOUNDARY = 70
#: A parameter of a header: its name and its value, which may be quoted.
_PARAMETER = re.compile(rb';[ \t]*([\w-]+)[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|([^;\s]*))')
_ESCAPED = re.compile(rb"\\(.)")
_MULTIPART = b"multipart/form-data"

#: Fields by their names.
Fields = dict[bytes, list[bytes]]


def parse_form(content_type: bytes, content: bytes) -> Fields:
    """Parse a form.

    :param content_type: its type, either ``multipart/form-data`` or ``application/x-www-form-urlencoded``.
    :param content: its bytes.
    :raises ProtocolError: if it is malformed.
    :raises MessageTooLarge: if it has too much of something.
    """
    if content_type.strip().lower().startswith(_MULTIPART):
        return _parse_multipart(content_type, content)
    check_fields(content)
    _check("escaped bytes", content.count(b"%"), MAX_ESCAPES)
    fields: Fields = parse_qs(content, True)
    return fields


def check_fields(encoded: bytes) -> None:
    """Check how many fields a query, or a form in that encoding, has.

    :raises MessageTooLarge: if it has more than :data:`MAX_FIELDS`.
    """
    _check("fields", encoded.count(b"&") + encoded.count(b";") + 1, MAX_FIELDS)


def _check(what: str, number: int, limit: int) -> None:
    if number > limit:
        text = f"a form or a query with {number} {what}, or more; the limit is {limit}"
        raise MessageTooLarge(text, size=number, limit=limit)


def _parse_multipart(content_type: bytes, content: bytes) -> Fields:
    boundary = _parameters(content_type).get(b"boundary", b"")
    if not 0 < len(boundary) <= _MAX_BOUNDARY:
        raise ProtocolError(f"a form whose boundary has {len(boundary)} bytes")
    first, delimiter = b"--" + boundary, b"\r\n--" + boundary
    parts = content.split(delimiter, MAX_FIELDS + 1)
    _check("fields", len(parts) - 1, MAX_FIELDS)
    # What is before the first delimiter belongs to no part; usually the content begins with it.
    parts[0] = parts[0].removeprefix(first) if content.startswith(first) else b"\r\n\r\n"
    if len(parts) == 1 and not content.startswith(first):
        raise ProtocolError("a form without the boundary that it announces")
    fields: Fields = {}
    size = 0
    for part in parts:
        if part.startswith(b"--"):  # the end
            break
        head, end, value = part.partition(b"\r\n\r\n")
        size += len(head)
        _check("bytes of headers", size, MAX_HEADERS)
        padding, _, headers = head.partition(b"\r\n")
        if padding.strip(b" \t") or not end:
            raise ProtocolError("a form with a part that is none")
        name = _name(headers)
        if name:
            fields.setdefault(name, []).append(value)
    return fields


def _name(head: bytes) -> bytes:
    """Return the name that the headers of a part give it, or nothing."""
    for line in head.split(b"\r\n"):
        header, _, value = line.partition(b":")
        if header.strip().lower() == b"content-disposition":
            return _parameters(value).get(b"name", b"")
    return b""


def _parameters(header: bytes) -> dict[bytes, bytes]:
    """Return the parameters of a header's value, by their names in small letters."""
    return {
        name.lower(): _ESCAPED.sub(rb"\1", quoted) or plain
        for name, quoted, plain in _PARAMETER.findall(header)
    }
