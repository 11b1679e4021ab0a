"""The parser of posted forms."""

from __future__ import annotations

import contextlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uwsgitwisted.engines.resource.forms import (
    MAX_ESCAPES,
    MAX_FIELDS,
    MAX_HEADERS,
    Fields,
    check_fields,
    parse_form,
)
from uwsgitwisted.errors import MessageTooLarge, ProtocolError

ENCODED = b"application/x-www-form-urlencoded"
MULTIPART = b"multipart/form-data; boundary=x"
HEAD = b'Content-Disposition: form-data; name="a"'

NAMES = st.text(st.characters(codec="ascii", exclude_characters='"\\\r\n'), min_size=1)
PIECES = [b"--x", b"\r\n", HEAD, b"--", b"--x--", b":", b";", b'"', b"\\", b"a"]


def part(value: bytes, head: bytes = HEAD) -> bytes:
    """Return a part behind its delimiter."""
    return b"--x\r\n" + head + b"\r\n\r\n" + value + b"\r\n"


def parse(*parts: bytes, end: bytes = b"--x--\r\n", content_type: bytes = MULTIPART) -> Fields:
    """Parse a form of parts."""
    return parse_form(content_type, b"".join(parts) + end)


class TestMultipart:
    def test_fields(self) -> None:
        """Values come by their names, in their order, and as they are."""
        other = b'Content-Disposition: form-data; name="b"; filename="f.bin"\r\nContent-Type: image/png'
        found = parse(part(b"1"), part(b"\r\n\0--y\r\n", other), part(b""))
        assert found == {b"a": [b"1", b""], b"b": [b"\r\n\0--y\r\n"]}

    @pytest.mark.parametrize(
        "content_type",
        [
            b'multipart/form-data; boundary="x"',
            b" Multipart/Form-Data;charset=utf-8 ; Boundary=x; y=z",
            b'multipart/form-data; note="; boundary=y"; boundary=x',
        ],
    )
    def test_boundary(self, content_type: bytes) -> None:
        """The boundary may be written in each way that browsers and libraries have."""
        assert parse(part(b"1"), content_type=content_type) == {b"a": [b"1"]}

    @pytest.mark.parametrize(
        ("head", "name"),
        [
            (b"content-disposition: form-data; name=a", b"a"),
            (b'X: 1\r\nContent-Disposition: form-data; filename="; name=b"; name="a"', b"a"),
            (b'Content-Disposition: form-data; name="a \\"b\\" \\\\"', b'a "b" \\'),
            ('Content-Disposition: form-data; name="é"'.encode(), "é".encode()),
            (b'Content-Disposition: form-data; filename="x"; NAME = "a;b"', b"a;b"),
        ],
    )
    def test_names(self, head: bytes, name: bytes) -> None:
        """So may the name of a field."""
        assert parse(part(b"1", head)) == {name: [b"1"]}

    @pytest.mark.parametrize("head", [b"X: 1", b"Content-Disposition: form-data", HEAD.replace(b'"a"', b'""')])
    def test_no_name(self, head: bytes) -> None:
        """A part without a name is skipped, and so is one without headers."""
        assert parse(part(b"1", head), b"--x\r\n\r\nvalue\r\n", part(b"2")) == {b"a": [b"2"]}

    def test_around(self) -> None:
        """What is before the first delimiter and behind the last one is no field; spaces may follow one."""
        assert parse(b"before\r\n", part(b"1"), end=b"--x--\r\nbehind --x\r\n") == {b"a": [b"1"]}
        assert parse(b"--x \t\r\n" + HEAD + b"\r\n\r\n1\r\n") == {b"a": [b"1"]}

    def test_empty(self) -> None:
        """A form may have no fields."""
        assert parse() == {}

    @pytest.mark.parametrize(
        ("content_type", "content"),
        [
            (b"multipart/form-data", part(b"1")),
            (b'multipart/form-data; boundary=""', part(b"1").replace(b"--x", b"--") + b"----"),
            (b"multipart/form-data; boundary=" + b"x" * 71, part(b"1").replace(b"--x", b"--" + b"x" * 71)),
            (b"multipart/form-data; boundary=y", part(b"1")),
            (MULTIPART, b"nothing"),
            (MULTIPART, b"--x\r\n" + HEAD),
            (MULTIPART, b"--xy\r\n" + HEAD + b"\r\n\r\n1\r\n--x--"),
        ],
    )
    def test_malformed(self, content_type: bytes, content: bytes) -> None:
        """A form that can't be cut is refused."""
        with pytest.raises(ProtocolError):
            parse_form(content_type, content)

    def test_many_fields(self) -> None:
        """The number of fields has a limit, whatever they are."""
        assert len(parse_form(MULTIPART, b"\r\n--x\r\n\r\n" * MAX_FIELDS)) == 0
        with pytest.raises(MessageTooLarge, match="10001 fields"):
            parse_form(MULTIPART, b"\r\n--x" * 100_000)

    def test_many_headers(self) -> None:
        """So have the headers of all parts together."""
        half = b"X: " + b"y" * (MAX_HEADERS // 2)
        assert parse(part(b"1", half), part(b"2")) == {b"a": [b"2"]}
        with pytest.raises(MessageTooLarge, match="bytes of headers"):
            parse(part(b"1", half), part(b"2", half))

    @given(
        st.lists(
            st.tuples(
                st.text(st.characters(codec="ascii", exclude_characters='"\\\r\n;'), min_size=1), st.binary()
            )
        )
    )
    def test_round_trip(self, fields: list[tuple[str, bytes]]) -> None:
        """Whatever is sent with a boundary that doesn't occur in it arrives."""
        boundary = b"-----a-boundary-that-is-long-enough"
        expected: Fields = {}
        content = b""
        for name, value in fields:
            expected.setdefault(name.encode(), []).append(value)
            head = b'Content-Disposition: form-data; name="' + name.encode() + b'"'
            content += b"--" + boundary + b"\r\n" + head + b"\r\n\r\n" + value + b"\r\n"
        content_type = b"multipart/form-data; boundary=" + boundary
        assert parse_form(content_type, content + b"--" + boundary + b"--\r\n") == expected

    @given(
        st.binary(),
        st.lists(st.sampled_from([b"--x", b"\r\n", HEAD, b"--", b"--x--", b":", b";", b'"', b"\\", b"a"])),
    )
    def test_junk(self, content_type: bytes, pieces: list[bytes]) -> None:
        """Junk gives fields, or one of our errors."""
        for kind in (MULTIPART, b"multipart/form-data;" + content_type):
            with contextlib.suppress(ProtocolError, MessageTooLarge):
                parse_form(kind, b"".join(pieces))

    def test_time(self) -> None:
        """Nothing that fits takes long, whatever it is made of."""
        size = MAX_HEADERS - 100
        heads = [b"a:b\r\n" * (size // 5) + HEAD, HEAD + b";a=b" * (size // 4), HEAD + b';a="' * (size // 4)]
        heads += [
            HEAD + b";" + b"a" * size,
            HEAD + b'; a="' + b"\\;a=" * (size // 4),
            HEAD + b"; " * (size // 2),
        ]
        started = time.process_time()
        for head in heads:
            parse(part(b"1", head))
        parse(part(b"\r\n--" * 1_000_000))
        assert time.process_time() - started < 10  # quadratic time would be minutes


class TestEncoded:
    def test_fields(self) -> None:
        """Fields are unescaped, and may be empty."""
        assert parse_form(ENCODED, b"a=1&b=%20+&a=2;c=") == {b"a": [b"1", b"2"], b"b": [b"  "], b"c": [b""]}

    @pytest.mark.parametrize("separator", [b"&", b";"])
    def test_many_fields(self, separator: bytes) -> None:
        """The number of fields has a limit, for a query too."""
        most = b"a=" + separator * (MAX_FIELDS - 1)
        assert parse_form(ENCODED, most) == {b"a": [b""]}
        check_fields(most)
        for check in (check_fields, lambda content: parse_form(ENCODED, content)):
            with pytest.raises(MessageTooLarge, match="10001 fields"):
                check(most + separator)

    def test_many_escapes(self) -> None:
        """So has the number of escaped bytes, each of which takes time."""
        assert parse_form(ENCODED, b"a=" + b"%41" * MAX_ESCAPES) == {b"a": [b"A" * MAX_ESCAPES]}
        with pytest.raises(MessageTooLarge, match="escaped bytes"):
            parse_form(ENCODED, b"a=" + b"%41" * (MAX_ESCAPES + 1))
