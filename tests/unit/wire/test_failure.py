"""Exceptions on the wire: which ones are restored, and how all others are described."""

from __future__ import annotations

import pickle
import sys
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uwsgitwisted import errors
from uwsgitwisted.address import parse_address
from uwsgitwisted.wire.failure import MAX_TEXT, decode_failure, describe, encode_failure
from uwsgitwisted.wire.packet import MAX_PAYLOAD
from uwsgitwisted.wire.vars import decode_vars, encode_vars

OURS = [
    errors.Busy,
    errors.MalformedPacket,
    errors.MessageTooLarge,
    errors.RequestCancelled,
    errors.RequestTimeout,
    errors.SpoolError,
    errors.SpoolRefused,
    errors.Unavailable,
    errors.UnencodableMessage,
    errors.UnknownModifier,
    errors.UnsafeObject,
    errors.WorkerDied,
]


def raised(error: BaseException) -> BaseException:
    """Return *error* with a traceback."""
    try:
        raise error
    except type(error) as caught:
        return caught


def sent(error: BaseException, **options: object) -> errors.UwsgiError:
    return decode_failure(encode_failure(error, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("cls", OURS)
def test_ours_come_back_as_themselves(cls: type[errors.UwsgiError]) -> None:
    """An error that a server may raise is made again, with its text and without its address."""
    error = sent(cls("what happened", address=("host", 1)))
    assert type(error) is cls
    assert error.text == "what happened"
    assert error.address is None


@pytest.mark.parametrize(
    ("error", "facts"),
    [
        (errors.MessageTooLarge("large", size=70_000, limit=65_535), {"size": 70_000, "limit": 65_535}),
        (errors.RequestTimeout("late", seconds=2.5), {"seconds": 2.5}),
        (errors.UnknownModifier("what?", modifier1=173), {"modifier1": 173}),
    ],
)
def test_facts(error: errors.UwsgiError, facts: dict[str, float]) -> None:
    """What an error has as attributes comes back with it."""
    found = sent(error)
    assert {name: getattr(found, name) for name in facts} == facts


@pytest.mark.parametrize("value", [b"", b"x", b"1e400", b"inf", b"9" * 5_000, b"1_0", b"1.5", b"\xd9\xa1"])
def test_facts_of_a_hostile_peer(value: bytes) -> None:
    """A number that is none is taken for not told."""
    pairs = [(b"class", b"MessageTooLarge"), (b"text", b"large"), (b"size", value), (b"limit", b"7")]
    error = decode_failure(encode_vars(pairs))
    assert isinstance(error, errors.MessageTooLarge)
    assert (error.text, error.size, error.limit) == ("large", 0, 7)


def test_the_remote_traceback_is_printed_first() -> None:
    """An uncaught exception of a handler shows its remote traceback, once."""
    for error in (sent(raised(KeyError("name"))), pickle.loads(pickle.dumps(sent(raised(KeyError("name")))))):
        printed = "".join(traceback.format_exception(raised(error)))
        there, direct_cause, here = printed.partition("The above exception was the direct cause of")
        assert direct_cause
        assert "KeyError: 'name'" in there
        assert "in raised" in there
        assert printed.count("raise error") == 2
        assert here.rstrip().endswith("RemoteError: KeyError: 'name'")


@pytest.mark.parametrize(
    ("address", "place"),
    [
        (("10.0.0.5", 3033), "10.0.0.5:3033"),
        (["::1", "3033"], "[::1]:3033"),
        ("/run/node.sock", "/run/node.sock"),
        (parse_address("tls:node:3033"), "tls:node:3033"),
        ((1, 2, 3), "(1, 2, 3)"),
    ],
)
def test_the_address_in_an_error(address: object, place: str) -> None:
    """An error names its address as people write it."""
    assert str(errors.NoAnswer("closed", address=address)) == f"{place}: closed"


def test_a_handlers_exception() -> None:
    """An exception of a handler is described: its class, text, traceback and where it ran."""
    error = sent(raised(KeyError("name")), node="n1 worker 2")
    assert isinstance(error, errors.RemoteError)
    assert (error.type, error.message, error.node) == ("KeyError", "'name'", "n1 worker 2")
    assert error.traceback.startswith("Traceback (most recent call last)")
    assert "in raised" in error.traceback
    assert str(error) == "KeyError: 'name'"


def test_a_description_goes_on_as_it_is() -> None:
    """What a worker described, its front passes on with the worker's name."""
    error = sent(describe(raised(ValueError("no")), node="worker 1"), node="front")
    assert isinstance(error, errors.RemoteError)
    assert (error.type, error.message, error.node) == ("ValueError", "no", "worker 1")
    assert "in raised" in error.traceback


@pytest.mark.parametrize("error", [raised(KeyError("name")), describe(raised(KeyError("name")))])
def test_without_tracebacks(error: BaseException) -> None:
    """A server that keeps tracebacks to itself tells class and text only."""
    block = encode_failure(error, tracebacks=False)
    assert b"Traceback" not in block
    told = decode_failure(block)
    assert isinstance(told, errors.RemoteError)
    assert (told.type, told.traceback) == ("KeyError", "")


def test_others_of_ours_are_described() -> None:
    """An error of ours that says nothing of this request, or is of a class derived from one, is a handler's."""

    class Busy(errors.Busy):
        pass

    for error in (errors.ConnectionFailed("elsewhere"), Busy("mine")):
        told = sent(error)
        assert isinstance(told, errors.RemoteError)
        assert told.type == type(error).__name__


def test_long_texts_are_clipped() -> None:
    """Texts of any length fit one packet; of a long one, the end is sent."""
    long = "x" * 100_000 + "the end"
    remote = errors.RemoteError(type=long, message=long, traceback=long, node=long)
    block = encode_failure(remote)
    assert len(block) < MAX_PAYLOAD
    told = decode_vars(block)
    for key in (b"type", b"message", b"traceback", b"node"):
        assert told[key].startswith(b"... x")
        assert told[key].endswith(b"xthe end")
        assert len(told[key]) == MAX_TEXT
    block = encode_failure(errors.Busy(long), node=long)
    assert len(block) < MAX_PAYLOAD
    assert sent(errors.Busy("x" * MAX_TEXT)).text == "x" * MAX_TEXT


def test_text_that_has_no_utf8_form() -> None:
    """Lone surrogates and characters cut in two don't keep an error from being told."""
    assert sent(errors.Busy("a\udcffb")).text == "a\\udcffb"
    assert sent(errors.Busy("\u20ac" * MAX_TEXT)).text.endswith("\u20ac\u20ac")


def test_an_exception_without_a_text() -> None:
    """An exception whose __str__ raises is described all the same."""

    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    told = sent(raised(Broken()))
    assert isinstance(told, errors.RemoteError)
    assert (told.type, told.message) == ("Broken", "(its text can't be had: RuntimeError)")


def test_no_name_is_imported() -> None:
    """A class's name that a peer sent is text: nothing is imported or made by it."""
    name = b"antigravity.Error"
    told = decode_failure(encode_vars([(b"class", name), (b"type", name), (b"message", b"m")]))
    assert type(told) is errors.RemoteError
    assert told.type == name.decode()
    assert "antigravity" not in sys.modules
    assert type(decode_failure(encode_vars([(b"class", b"StartupError")]))) is errors.RemoteError


def test_nothing_told() -> None:
    """An empty failure is a RemoteError; bytes that are not a vars block are refused."""
    assert type(decode_failure(b"")) is errors.RemoteError
    with pytest.raises(errors.MalformedPacket):
        decode_failure(b"\x09\x00a")


@given(st.text(), st.text())
def test_round_trip(text: str, node: str) -> None:
    """Any text that has a UTF-8 form arrives as it was."""
    told = sent(errors.RemoteError(type="T", message=text, node=node))
    assert isinstance(told, errors.RemoteError)
    assert (told.message, told.node) == (text, node)
