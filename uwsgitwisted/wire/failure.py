"""Encodes and decodes exceptions, for the error frames of a session.

The form is a vars block with the keys ``class``, ``text``, ``type``, ``message``, ``traceback`` and ``node``,
and the attributes of our own errors. One of our errors is restored from a fixed list of classes. Any other
exception becomes a :class:`~uwsgitwisted.errors.RemoteError` that describes it, so that no name from a peer is
ever imported.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from uwsgitwisted import errors
from uwsgitwisted.wire.vars import decode_vars, encode_vars

#: Long enough for any traceback that a person reads; five texts of this size fit in a packet's 65535 bytes.
MAX_TEXT = 8_000

#: The errors that a server may send, in addition to exceptions of handlers.
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
        errors.UnknownFunction,
        errors.UnknownModifier,
        errors.UnsafeObject,
        errors.WorkerDied,
    )
}


#: The attributes of these classes that are sent along with the text, and how to parse them.
_FACTS: dict[type[errors.UwsgiError], dict[str, Callable[[bytes], float]]] = {
    errors.MessageTooLarge: {"size": int, "limit": int},
    errors.RequestTimeout: {"seconds": float},
    errors.UnknownModifier: {"modifier1": int},
}
#: A number that a peer may send: short enough to parse in no time, and within the range of a float.
_NUMBER = re.compile(rb"-?[0-9]{1,18}(?:\.[0-9]{1,18})?")


def encode_failure(error: BaseException, *, node: str = "", tracebacks: bool = True, peer: str = "") -> bytes:
    """Return the vars block that describes *error*.

    :param node: the node and worker where it happened.
    :param tracebacks: whether to include a handler's traceback, which names files and lines of the server's
        code.
    :param peer: whose request has failed, if the receiver doesn't know that.
    """
    about = [(b"peer", _clip(peer))] if peer else []
    name = type(error).__name__.encode()
    if _CLASSES.get(name) is type(error):
        assert isinstance(error, errors.UwsgiError)
        facts = [(fact.encode(), str(getattr(error, fact)).encode()) for fact in _FACTS.get(type(error), {})]
        return encode_vars(
            [(b"class", name), (b"text", _clip(error.text)), *facts, (b"node", _clip(node)), *about]
        )
    remote = error if isinstance(error, errors.RemoteError) else describe(error, node=node)
    pairs = [
        (b"class", b"RemoteError"),
        (b"type", _clip(remote.type)),
        (b"message", _clip(remote.message)),
        (b"node", _clip(remote.node)),
        *about,
    ]
    if tracebacks and remote.traceback:
        pairs.append((b"traceback", _clip(remote.traceback)))
    return encode_vars(pairs)


def no_keepalive(silent: float) -> errors.NoAnswer:
    """Return the error of requests to a server that hangs.

    :param silent: seconds of its silence.
    """
    return errors.NoAnswer(
        f"the server has sent nothing for {silent:.0f} s, not even the answer to a ping: it hangs or is cut "
        "off, and may have started the request"
    )


def no_grant(silent: float) -> errors.ConnectionFailed:
    """Return the error of requests to a node that has granted sessions before, and doesn't answer an offer.

    :param silent: seconds of its silence.
    """
    return errors.ConnectionFailed(
        f"the node accepts connections but has sent nothing for {silent:.0f} s: it hangs. No request was sent"
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
    """Return the exception that *block* describes, for the caller to raise.

    :raises MalformedPacket: if *block* is not a vars block.
    """
    variables = decode_vars(block)

    def text(key: bytes) -> str:
        return variables.get(key, b"").decode("utf-8", "replace")

    cls = _CLASSES.get(variables.get(b"class", b""))
    if cls is not None:
        return cls(text(b"text"), **_facts(cls, variables))
    return errors.RemoteError(
        type=text(b"type"), message=text(b"message"), traceback=text(b"traceback"), node=text(b"node")
    )


def decode_peer(block: bytes) -> str:
    """Return whose request has failed, if *block* says so, or an empty text.

    :raises MalformedPacket: if *block* is not a vars block.
    """
    return decode_vars(block).get(b"peer", b"").decode("utf-8", "replace")


def _facts(cls: type[errors.UwsgiError], variables: Mapping[bytes, bytes]) -> dict[str, Any]:
    """Return the attributes that a peer has sent, without the malformed ones."""
    facts = {}
    for name, read in _FACTS.get(cls, {}).items():
        value = variables.get(name.encode(), b"")
        if _NUMBER.fullmatch(value):
            with suppress(ValueError):  # an integer with a fraction
                facts[name] = read(value)
    return facts


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as broken:  # a user's exception whose __str__ raises
        return f"(its text can't be had: {type(broken).__name__})"


def _clip(text: str) -> bytes:
    """Return the end of *text*: a traceback's last lines are the important ones."""
    data = text.encode("utf-8", "backslashreplace")
    return data if len(data) <= MAX_TEXT else b"... " + data[4 - MAX_TEXT :]
