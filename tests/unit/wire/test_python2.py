"""Text from Python 2: objects whose bytes become text, in answers too, and the errors that bytes cause."""

from __future__ import annotations

import marshal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uwsgitwisted.client import Client
from uwsgitwisted.wire.message import decode_answer, decoder
from uwsgitwisted.wire.packet import Packet
from uwsgitwisted.wire.python2 import HINT, check_encoding, explain, has_bytes, to_text
from uwsgitwisted.worker.compat import uwsgi
from uwsgitwisted.worker.handlers import marshal as marshal_handler

_TEXTS = st.recursive(
    st.text() | st.integers() | st.none(),
    lambda each: st.lists(each) | st.tuples(each, each) | st.dictionaries(st.text(), each),
)


def _encode(value: object) -> object:
    """Return what Python 2 sends in place of *value*."""
    if isinstance(value, str):
        return value.encode(errors="surrogatepass")
    if isinstance(value, dict):
        return {_encode(key): _encode(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_encode, value))
    return value


@given(_TEXTS)
def test_round_trip(value: object) -> None:
    """What was text there is text here, however deep in the object; and no bytes are left."""
    text = to_text(_encode(value), "utf-8")
    assert text == value
    assert not has_bytes(text)


def test_bytes_that_are_no_text() -> None:
    """They stay bytes; sets and text are handled as well."""
    assert to_text((b"\xff\xfe", {b"a"}, frozenset({b"b"}), "c", 1.5), "utf-8") == (
        b"\xff\xfe",
        {"a"},
        frozenset({"b"}),
        "c",
        1.5,
    )
    assert to_text(b"caf\xe9", "latin-1") == "café"


@pytest.mark.parametrize("name", ["nothing", "hex"])
def test_unknown_encodings(name: str) -> None:
    """They are refused, and the error suggests one."""
    with pytest.raises(ValueError, match="no text encoding"):
        check_encoding(name)


def test_answers() -> None:
    """A client decodes the objects of answers, and nothing else."""
    answer = Packet(33, 0, marshal.dumps({b"name": [b"ann"]}, 2))
    assert decoder("UTF8")(answer) == {"name": ["ann"]}
    assert decoder("utf-8")(Packet(0, 0, b"HTTP")) == b"HTTP"
    assert decoder() is decode_answer
    with pytest.raises(ValueError, match="no text encoding 'nothing'"):
        Client(None, python2="nothing")


def _old_handler(message: object, modifier2: int) -> object:
    name, variables = message  # type: ignore[misc]
    return "Dear " + variables["name"] + name


def test_a_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    """An old handler gets text with the option; without it, its error names the option."""
    monkeypatch.setattr(uwsgi, "message_manager_marshal", _old_handler)
    request = Packet(33, 17, marshal.dumps((b"!", {b"name": b"Ann"}), 2))
    with_text = marshal_handler.table("utf-8")[33]
    assert with_text(request).payload == marshal.dumps("Dear Ann!", 2)
    for variables in ({b"name": b"Ann"}, {"name": b"Ann"}):
        with pytest.raises(Exception, match="--python2 utf-8"):
            marshal_handler.table()[33](Packet(33, 17, marshal.dumps(("!", variables), 2)))


def test_errors_that_no_bytes_cause() -> None:
    """An error is left alone if the object has no bytes, or it is of another kind."""
    for error, value in ((TypeError("no"), ["a", {"b": 1}]), (OSError("no"), [b"a"])):
        explain(error, value)
        assert HINT not in str(error)
    error = TypeError("no")
    explain(error, {"a": (b"b",)})
    assert HINT in str(error)
