"""Variables as JSON: what callers send that speak HTTP or RPC."""

from __future__ import annotations

import json

from uwsgitwisted.errors import MisuseError

#: What a result cache's keys for these variables begin with; no object does.
_KEY = b"\0"


def key_of(name: str, variables: dict[str, object]) -> bytes:
    """Return the key of a page in the result cache, the same for all who ask with JSON.

    :param name: the template's name.
    """
    return _KEY + json.dumps([name, variables]).encode()


def variables_of(text: bytes) -> dict[str, object]:
    """Return the variables in *text*.

    :param text: a JSON object in UTF-8; empty for no variables.
    :raises MisuseError: if it is anything else.
    """
    if not text:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise MisuseError("the variables are not JSON") from None
    if not isinstance(value, dict):
        raise MisuseError("the variables are not a JSON object")
    return value
