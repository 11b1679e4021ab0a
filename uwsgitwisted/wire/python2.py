"""Text from Python 2 peers: their ``str`` arrives as bytes, which Python 3 doesn't take for text."""

from __future__ import annotations

import codecs

#: What the errors of a handler say that got bytes.
HINT = (
    "the object has bytes, as the text of a Python 2 caller arrives; if it comes from one, start the service "
    "with --python2 utf-8"
)
#: The errors that code raises which takes bytes for text.
_ERRORS = (TypeError, KeyError, AttributeError)


def check_encoding(name: str) -> str:
    """Return the name of a text encoding.

    :raises ValueError: if there is none of that name.
    """
    try:
        "a".encode(name)  # this refuses codecs such as hex, which make no text
        return codecs.lookup(name).name
    except LookupError:
        raise ValueError(f"there is no text encoding {name!r}; utf-8 is most likely right") from None


def to_text(value: object, encoding: str) -> object:
    """Return *value* with all bytes in it decoded; bytes that are no text in that *encoding* stay bytes.

    :param value: an object as :mod:`.objects` loads it, which bounds how deeply it is nested.
    """
    if isinstance(value, bytes):
        try:
            return value.decode(encoding)
        except UnicodeDecodeError:
            return value
    if isinstance(value, dict):
        return {to_text(key, encoding): to_text(each, encoding) for key, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return type(value)(to_text(each, encoding) for each in value)
    return value


def explain(error: Exception, value: object) -> None:
    """Add a hint to an *error* that bytes in *value* may have caused."""
    if isinstance(error, _ERRORS) and has_bytes(value):
        error.args = (f"{error} ({HINT})", *error.args[1:])


def has_bytes(value: object) -> bool:
    """Whether there are bytes in *value*."""
    if isinstance(value, dict):
        return any(has_bytes(key) or has_bytes(each) for key, each in value.items())
    if isinstance(value, (list, tuple, set, frozenset)):
        return any(map(has_bytes, value))
    return isinstance(value, bytes)
