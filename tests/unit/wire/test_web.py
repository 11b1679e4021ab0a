"""Web requests as uwsgi carries them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uwsgitwisted.errors import MalformedRequest, MessageTooLarge
from uwsgitwisted.wire.packet import PacketDecoder
from uwsgitwisted.wire.vars import decode_vars
from uwsgitwisted.wire.web import Header, Target, WebRequest, parse_target


@pytest.mark.parametrize(
    ("target", "parsed"),
    [
        (b"/", Target(b"/", b"", b"/", None)),
        (b"/a/b", Target(b"/a/b", b"", b"/a/b", None)),
        (b"/a/?x=%41?y", Target(b"/a/", b"x=%41?y", b"/a/?x=%41?y", None)),
        (b"//a///b//", Target(b"/a/b/", b"", b"//a///b//", None)),
        (b"/./a/./b/.", Target(b"/a/b/", b"", b"/./a/./b/.", None)),
        (b"/a/../b/..", Target(b"/", b"", b"/a/../b/..", None)),
        (b"/a/b/..", Target(b"/a/", b"", b"/a/b/..", None)),
        (b"/%41%2fb+c%20", Target(b"/A/b+c ", b"", b"/%41%2fb+c%20", None)),
        (b"/a/%2e%2E/b", Target(b"/b", b"", b"/a/%2e%2E/b", None)),
        (b"/...", Target(b"/...", b"", b"/...", None)),
        (b"http://host:8/a?b", Target(b"/a", b"b", b"/a?b", b"host:8")),
        (b"HTTPS://host", Target(b"/", b"", b"/", b"host")),
        (b"http://host?x", Target(b"/", b"x", b"/?x", b"host")),
    ],
)
def test_targets(target: bytes, parsed: Target) -> None:
    """A path is decoded and normalized as nginx does it; the rest stays as it was sent."""
    assert parse_target(target) == parsed


@pytest.mark.parametrize(
    "target",
    [
        b"*",
        b"host:443",
        b"a",
        b"/..",
        b"/a/../..",
        b"/%",
        b"/%4",
        b"/%4g",
        b"/%00",
        b"/a#b",
        b"ftp://h/",
        b"http:///",
    ],
)
def test_bad_targets(target: bytes) -> None:
    """A target that is no path, or leads above the root, is refused."""
    with pytest.raises(MalformedRequest):
        parse_target(target)


@given(st.text("/.%2eEfF5a", max_size=30))
def test_no_path_leads_out(text: str) -> None:
    """Whatever a path is made of, no segment of the result is one that leads up."""
    try:
        path = parse_target(b"/" + text.encode()).path
    except MalformedRequest:
        return
    assert path.startswith(b"/")
    assert not {b"", b".", b".."} & set(path.strip(b"/").split(b"/")) or path == b"/"


def request(
    *headers: Header,
    target: bytes = b"/a?b",
    protocol: bytes = b"HTTP/1.1",
    scheme: bytes = b"http",
    trusted: bool = False,
) -> WebRequest:
    return WebRequest(
        method=b"POST",
        target=parse_target(target),
        protocol=protocol,
        headers=headers,
        scheme=scheme,
        remote=(b"192.0.2.7", b"4000"),
        port=b"8080",
        trusted=trusted,
    )


HOST: Header = (b"Host", [b"Example.org:80"])


def variables(web: WebRequest, length: int = 0) -> dict[str, str]:
    """Return the variables of a request as a node reads them."""
    (packet,) = PacketDecoder().receive(web.encode(length))
    assert packet[:2] == (0, 0)
    return {key.decode(): value.decode() for key, value in decode_vars(packet.payload).items()}


def test_variables() -> None:
    """The variables are those of nginx, and the headers of the client."""
    web = request(HOST, (b"Content-Type", [b"text/plain"]), (b"X-Two", [b"1", b"2"]), (b"Cookie", [b"a", b"b"]))
    assert variables(web, 7) == {
        "QUERY_STRING": "b",
        "REQUEST_METHOD": "POST",
        "CONTENT_TYPE": "text/plain",
        "CONTENT_LENGTH": "7",
        "REQUEST_URI": "/a?b",
        "PATH_INFO": "/a",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REQUEST_SCHEME": "http",
        "REMOTE_ADDR": "192.0.2.7",
        "REMOTE_PORT": "4000",
        "SERVER_PORT": "8080",
        "SERVER_NAME": "example.org",
        "HTTP_HOST": "Example.org:80",
        "HTTP_X_TWO": "1, 2",
        "HTTP_COOKIE": "a; b",
        "HTTP_X_FORWARDED_FOR": "192.0.2.7",
        "HTTP_X_FORWARDED_HOST": "Example.org:80",
        "HTTP_X_FORWARDED_PROTO": "http",
    }


def test_no_body() -> None:
    """A length of 0 is there if the client has sent it."""
    assert variables(request(HOST))["CONTENT_LENGTH"] == ""
    assert variables(request(HOST, (b"Content-Length", [b"0"])))["CONTENT_LENGTH"] == "0"


def test_https() -> None:
    """With TLS, there is HTTPS as well."""
    found = variables(request(HOST, scheme=b"https"))
    assert (found["HTTPS"], found["REQUEST_SCHEME"], found["HTTP_X_FORWARDED_PROTO"]) == (
        "on",
        "https",
        "https",
    )


def test_hosts() -> None:
    """The host of the target counts; without any, there is no HTTP_HOST."""
    found = variables(request(HOST, target=b"http://[::1]:8/"))
    assert (found["HTTP_HOST"], found["SERVER_NAME"]) == ("[::1]:8", "[::1]")
    web = request(protocol=b"HTTP/1.0")
    web.check()
    found = variables(web)
    assert "HTTP_HOST" not in found
    assert "HTTP_X_FORWARDED_HOST" not in found
    assert found["SERVER_NAME"] == "localhost"


LIES: list[Header] = [
    (b"X-Forwarded-For", [b"1.2.3.4"]),
    (b"X-Forwarded-Host", [b"there"]),
    (b"X-Forwarded-Proto", [b"https"]),
    (b"X-Forwarded-Port", [b"1"]),
    (b"Forwarded", [b"for=1.2.3.4"]),
    (b"X-Real-IP", [b"1.2.3.4"]),
]
DROPPED: list[Header] = [
    (b"Proxy", [b"evil"]),
    (b"X_Forwarded_For", [b"evil"]),
    (b"X.Y", [b"evil"]),
    (b"Connection", [b"close"]),
    (b"Transfer-Encoding", [b"chunked"]),
]


def test_what_is_dropped() -> None:
    """Headers that could be taken for others, and lies about the client, don't reach the node."""
    assert variables(request(HOST, *LIES, *DROPPED)) == variables(request(HOST))


def test_trusted_proxies() -> None:
    """A trusted proxy's headers are kept, and its address is added."""
    found = variables(request(HOST, *LIES, *DROPPED, trusted=True))
    added = {
        name: value for name, value in found.items() if found.get(name) != variables(request(HOST)).get(name)
    }
    assert added == {
        "HTTP_X_FORWARDED_FOR": "1.2.3.4, 192.0.2.7",
        "HTTP_X_FORWARDED_HOST": "there",
        "HTTP_X_FORWARDED_PROTO": "https",
        "HTTP_X_FORWARDED_PORT": "1",
        "HTTP_FORWARDED": "for=1.2.3.4",
        "HTTP_X_REAL_IP": "1.2.3.4",
    }
    assert variables(request(HOST, trusted=True)) == variables(request(HOST))


def test_good_requests() -> None:
    """A request with one host, and with one encoding that is known, is good."""
    request(HOST).check()
    request(HOST, (b"Transfer-Encoding", [b"Chunked"])).check()


@pytest.mark.parametrize(
    "web",
    [
        request(),
        request(HOST, (b"host", [b"b"])),
        request((b"Host", [b"a", b"b"])),
        request((b"Host", [b"a b"])),
        request((b"Host", [b"a/b"])),
        request(HOST, target=b"http://a@b/"),
        request(HOST, (b"X", [b"a\nb"])),
        request(HOST, (b"X", [b"a\x00b"])),
        request(HOST, (b"Transfer-Encoding", [b"gzip"])),
        request(HOST, (b"Transfer-Encoding", [b"identity"])),
        request(HOST, (b"Transfer-Encoding", [b"chunked", b"chunked"])),
        request(HOST, (b"Transfer-Encoding", [b"chunked"]), protocol=b"HTTP/1.0"),
        request(HOST, (b"Transfer-Encoding", [b"chunked"]), (b"Content-Length", [b"5"])),
    ],
)
def test_bad_requests(web: WebRequest) -> None:
    """A request with no host or several, or whose body ends one knows not where, is refused."""
    with pytest.raises(MalformedRequest):
        web.check()


def test_too_many_variables() -> None:
    """Variables that don't fit a packet are refused."""
    with pytest.raises(MessageTooLarge):
        request(HOST, (b"X", [b"a" * 65_500])).encode(0)
