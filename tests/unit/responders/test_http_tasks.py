"""Web requests for tasks, and their answers, as values and bytes."""

from __future__ import annotations

import json
from dataclasses import replace
from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uwsgitwisted.errors import SpoolError
from uwsgitwisted.responders.http_tasks import HttpRequest, accepted_answer, json_answer, refused_answer
from uwsgitwisted.spool.records import ERROR_LINE_LIMIT, RESULT_REPR_LIMIT, describe_record, for_json
from uwsgitwisted.spool.stores.interface import Record
from uwsgitwisted.spool.task import State, Task
from uwsgitwisted.wire.objects import dumps, loads
from uwsgitwisted.wire.tasks import load_result
from uwsgitwisted.wire.vars import encode_vars


def request(**variables: str | bytes) -> HttpRequest:
    return HttpRequest.read(encode_vars(variables))


class TestPath:
    @pytest.mark.parametrize(
        ("variables", "path"),
        [
            ({}, ""),
            ({"REQUEST_URI": "/"}, ""),
            ({"REQUEST_URI": "/tasks"}, "/tasks"),
            ({"REQUEST_URI": "/tasks/"}, "/tasks"),
            ({"REQUEST_URI": "/tasks?a=b/7"}, "/tasks"),
            ({"REQUEST_URI": "/a%20b/%0d%0a"}, "/a%20b/%0d%0a"),
            ({"REQUEST_URI": "//evil.example/x"}, "/evil.example/x"),
            ({"REQUEST_URI": b"/\xff\x00\r\nX: y"}, "/%FF%00%0D%0AX:%20y"),
            ({"DOCUMENT_URI": "/tasks", "REQUEST_URI": "/other"}, "/tasks"),
            ({"PATH_INFO": "/my tasks"}, "/my%20tasks"),
            ({"SCRIPT_NAME": "/app", "PATH_INFO": "/tasks/", "QUERY_STRING": "a=b"}, "/app/tasks"),
            ({"DOCUMENT_URI": "/a b%\r\n?x"}, "/a%20b%25%0D%0A%3Fx"),
            ({"DOCUMENT_URI": "/caf\u00e9"}, "/caf%C3%A9"),
        ],
    )
    def test_path(self, variables: dict[str, str | bytes], path: str) -> None:
        """The path is the document's, or else the request's without its query, escaped."""
        assert request(**variables).path == path

    @pytest.mark.parametrize(
        ("uri", "task"),
        [
            ("/tasks/7", 7),
            ("/7", 7),
            ("/tasks/007", 7),
            ("/tasks/7/", 7),
            ("/a/1/b/2", 2),
            ("/tasks", None),
            ("/tasks/", None),
            ("/tasks7", None),
            ("/tasks/-7", None),
            ("/tasks/7.0", None),
            ("/tasks/%37", None),
            ("/tasks/\u0667", None),
            ("/tasks/" + "9" * 18, 10**18 - 1),
            ("/tasks/" + "9" * 19, None),
        ],
    )
    def test_task(self, uri: str, task: int | None) -> None:
        """The number at the end of a path is a task's id."""
        assert request(REQUEST_URI=uri).task == task

    @given(st.binary(max_size=50), st.binary(max_size=50))
    def test_any_location(self, document: bytes, uri: bytes) -> None:
        """Whatever the path contains, the answer has the same lines and a Location on this host."""
        asked = request(REQUEST_METHOD="POST", DOCUMENT_URI=document, REQUEST_URI=uri)
        head, _, body = accepted_answer(asked, 7, "ready").partition(b"\r\n\r\n")
        names = [line.partition(b": ")[0] for line in head.split(b"\r\n")]
        assert names == [
            b"HTTP/1.0 202 Accepted",
            b"Content-Type",
            b"Content-Length",
            b"Cache-Control",
            b"Location",
        ]
        location = head.rpartition(b"Location: ")[2]
        assert location.startswith(b"/")
        assert not location.startswith(b"//")
        assert head.isascii()
        assert json.loads(body) == {"id": 7, "state": "ready"}


class TestAnswer:
    def test_bytes(self) -> None:
        """An answer is a status line, headers with the body's length, and JSON."""
        assert json_answer(HTTPStatus.OK, {"caf\u00e9": [1, None]}, [("X-A", "b")]) == (
            b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\nContent-Length: 25\r\n"
            b"Cache-Control: no-store\r\nX-A: b\r\n\r\n"
            b'{"caf\\u00e9": [1, null]}\n'
        )

    @pytest.mark.parametrize("text", ["a\r\nSet-Cookie: b", "a\n", "a\r", "\0", "caf\u00e9", "\x7f"])
    def test_headers(self, text: str) -> None:
        """A header that contains a line end, or isn't printable ASCII, is never written."""
        for header in (("X-A", text), (text, "a")):
            with pytest.raises(ValueError, match="can't be"):
                json_answer(HTTPStatus.OK, None, [header])

    def test_text_of_a_refusal(self) -> None:
        """An error's text stays within its JSON string, whatever it holds."""
        data = refused_answer(SpoolError('at="\r\n\0<script>'))
        head, _, body = data.partition(b"\r\n\r\n")
        assert json.loads(body) == {"error": 'at="\r\n\0<script>'}
        assert body.count(b"\n") == 1
        assert head.startswith(b"HTTP/1.0 400 Bad Request\r\n")


def loaded(record: Record) -> dict[str, object]:
    """Return a task's description, with its result loaded."""
    return describe_record(record) | {"result": load_result(record.result)}


def described(result: object, error: str = "") -> dict[str, object]:
    return loaded(Record(Task(b"", 1.0, 1.0, id=7), State.DONE, error=error, result=dumps(result)))


class TestRecord:
    def test_fresh(self) -> None:
        """A waiting task has no times and no result yet."""
        record = Record(Task(b"", at=2.0, created=1.0, id=7), State.SCHEDULED)
        assert describe_record(record) == {
            "id": 7,
            "state": "scheduled",
            "queue": "",
            "attempts": 0,
            "crashes": 0,
            "created": 1.0,
            "at": 2.0,
            "started": None,
            "finished": None,
            "error": "",
            "result": b"",
        }

    def test_large_result(self) -> None:
        """A description contains a result, as bytes, only if it was read with the rest."""
        record = Record(Task(b"", at=2.0, created=1.0, id=7), State.DONE, result=dumps(1), result_size=5)
        assert describe_record(record)["result"] == dumps(1)
        assert describe_record(replace(record, result=b""))["result"] is None

    @pytest.mark.parametrize(
        ("error", "line"),
        [
            ("", ""),
            ("one", "one"),
            ("Traceback\n  File\nValueError: x\n", "ValueError: x"),
            ("first\r\nlast \n\n", "last"),
            ("x" * 60_000, "x" * ERROR_LINE_LIMIT),
        ],
    )
    def test_error(self, error: str, line: str) -> None:
        """A description has the last line of an error."""
        assert described(None, error)["error"] == line

    @pytest.mark.parametrize(
        "result", [None, True, 0, -1.5, 2**53, "text", [], {"a": [1, {"b": None}]}, "\ud800"]
    )
    def test_result_in_json(self, result: object) -> None:
        """A result that JSON can represent is unchanged."""
        told = for_json(described(result))
        assert json.loads(json.dumps(told, allow_nan=False))["result"] == result
        assert "result_repr" not in told

    def test_tuple(self) -> None:
        """A tuple becomes a list."""
        assert json.loads(json.dumps(for_json(described((1, (2,))))))["result"] == [1, [2]]

    @pytest.mark.parametrize(
        "result",
        [
            b"bytes",
            {1: "a"},
            {"a": b"b"},
            [1, [float("nan")]],
            float("inf"),
            -float("inf"),
            1j,
            {"a"},
            frozenset(),
            2**53 + 1,
            [10**5_000],
        ],
    )
    def test_result_outside_json(self, result: object) -> None:
        """A result that JSON can't represent exactly becomes text; marshal represents it."""
        whole = described(result)
        assert repr(loads(dumps(whole["result"]))) == repr(result) if result != [10**5_000] else True
        told = for_json(whole)
        assert json.loads(json.dumps(told, allow_nan=False)) == told
        assert told["result"] is None
        assert isinstance(told["result_repr"], str)
        expected = "too long to be shown" if result == [10**5_000] else repr(result)
        assert expected in told["result_repr"]

    def test_long_text(self) -> None:
        """The text of a large result is truncated."""
        text = for_json(described(bytes(1_000_000)))["result_repr"]
        assert isinstance(text, str)
        assert len(text) == RESULT_REPR_LIMIT + 3

    @pytest.mark.parametrize("result", [b"junk", b"c" + bytes(50), dumps([1]) + b"x"])
    def test_broken_result(self, result: bytes) -> None:
        """A result that was damaged in the store is reported as damaged, and never loaded."""
        record = Record(Task(b"", 1.0, 1.0, id=7), State.DONE, result=result)
        assert "can't be read" in str(for_json(loaded(record))["result"])

    def test_marshal(self) -> None:
        """A description can be marshalled."""
        whole = described({1: b"x"}, "error")
        assert loads(dumps(whole)) == whole
