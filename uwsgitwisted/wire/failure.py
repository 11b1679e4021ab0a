"""An exception as bytes, and back: what a session's error frame carries.

The form is a vars block with the keys ``class``, ``text``, ``type``, ``message``, ``traceback`` and ``node``,
and the facts that an error of ours has as attributes. An exception of ours is made again from a fixed list of
classes; every other one is described by a :class:`~uwsgitwisted.errors.RemoteError`, so that no name that a
peer sent is ever imported.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from uwsgitwisted import errors
from uwsgitwisted.wire.vars import decode_vars, encode_vars

#: Long enough for any traceback that a person reads, and five of them fit well under a packet's 65535 bytes.
MAX_TEXT = 8_000

#: What a server may say of a request besides that its handler raised.
_CLASSES: dict[bytes, type[errors.UwsgiError]] = {
    cls.__name__.encode(): cls
    for cls in (
        errors.Busy,
        errors.Interrupted,
        errors.MalformedPacket,
        errors.MessageTooLarge,
        errors.NoSuchTask,
        errors.NotAllowed,
        errors.RequestCancelled,
        errors.RequestTimeout,
        errors.SpoolError,
        errors.SpoolRefused,
        errors.StoreUnavailable,
        errors.Unavailable,
        errors.UnencodableMessage,
        errors.UnknownModifier,
        errors.UnsafeObject,
        errors.WorkerDied,
    )
}


#: The attributes of these classes that travel, besides the text, and what reads them.
_FACTS: dict[type[errors.UwsgiError], dict[str, Callable[[bytes], float]]] = {
    errors.MessageTooLarge: {"size": int, "limit": int},
    errors.RequestTimeout: {"seconds": float},
    errors.UnknownModifier: {"modifier1": int},
}
#: A number as a peer may send it: one that takes no time to read, and that every float can hold.
_NUMBER = re.compile(rb"-?[0-9]{1,18}(?:\.[0-9]{1,18})?")


def encode_failure(error: BaseException, *, node: str = "", tracebacks: bool = True) -> bytes:
    """Return the vars block that describes *error*.

    :param node: which node and worker it happened on.
    :param tracebacks: whether a handler's traceback is told. It names files and lines of the server's code.
    """
    name = type(error).__name__.encode()
    if _CLASSES.get(name) is type(error):
        assert isinstance(error, errors.UwsgiError)
        facts = [(fact.encode(), str(getattr(error, fact)).encode()) for fact in _FACTS.get(type(error), {})]
        return encode_vars([(b"class", name), (b"text", _clip(error.text)), *facts, (b"node", _clip(node))])
    remote = error if isinstance(error, errors.RemoteError) else describe(error, node=node)
    pairs = [
        (b"class", b"RemoteError"),
        (b"type", _clip(remote.type)),
        (b"message", _clip(remote.message)),
        (b"node", _clip(remote.node)),
    ]
    if tracebacks and remote.traceback:
        pairs.append((b"traceback", _clip(remote.traceback)))
    return encode_vars(pairs)


def no_keepalive(silent: float) -> errors.NoAnswer:
    """Return the error of requests to a server that hangs.

    :param silent: seconds for which it has sent nothing.
    """
    return errors.NoAnswer(
        f"the server has sent nothing for {silent:.0f} s, not even the answer to a ping: it hangs, or is cut "
        "off. Whether it has begun the request is not known"
    )


def no_grant(silent: float) -> errors.ConnectionFailed:
    """Return the error of requests to a node that has granted sessions before, and leaves an offer unanswered.

    :param silent: seconds for which it has sent nothing.
    """
    return errors.ConnectionFailed(
        f"the node takes connections, and has sent nothing for {silent:.0f} s: it hangs. Nothing was asked"
    )


def describe(error: BaseException, *, node: str = "") -> errors.RemoteError:
    """Return the description of an exception that a handler raised."""
    return errors.RemoteError(
        type=type(error).__name__,
        message=_text_of(error),
        traceback="".join(traceback.format_exception(type(error), error, error.__traceback__)),
        node=node,
    )


def decode_failure(block: bytes) -> errors.UwsgiError:
    """Return the exception that *block* describes, to be raised at the caller.

    :raises MalformedPacket: if *block* is not a vars block.
    """
    told = decode_vars(block)

    def text(key: bytes) -> str:
        return told.get(key, b"").decode("utf-8", "replace")

    cls = _CLASSES.get(told.get(b"class", b""))
    if cls is not None:
        return cls(text(b"text"), **_facts(cls, told))
    return errors.RemoteError(
        type=text(b"type"), message=text(b"message"), traceback=text(b"traceback"), node=text(b"node")
    )


def _facts(cls: type[errors.UwsgiError], told: Mapping[bytes, bytes]) -> dict[str, Any]:
    """Return the attributes that a peer has told; one that is broken is left out."""
    facts = {}
    for name, read in _FACTS.get(cls, {}).items():
        value = told.get(name.encode(), b"")
        if _NUMBER.fullmatch(value):
            with suppress(ValueError):  # an integer with a fraction
                facts[name] = read(value)
    return facts


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as broken:  # an exception of the user's whose __str__ raises
        return f"(its text can't be had: {type(broken).__name__})"


def _clip(text: str) -> bytes:
    """Return the end of *text*: a traceback's last lines are the ones that tell."""
    data = text.encode("utf-8", "backslashreplace")
    return data if len(data) <= MAX_TEXT else b"... " + data[4 - MAX_TEXT :]
