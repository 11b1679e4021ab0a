"""The variables of a web request, as twisted.web wants them."""

from __future__ import annotations

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress

from uwsgitwisted.access import Peer
from uwsgitwisted.engines.resource.request import WebRequest, read_request
from uwsgitwisted.errors import MalformedPacket
from uwsgitwisted.wire.vars import encode_vars

PEER = Peer(UNIXAddress(None))


def read(modifier1: int = 0, **variables: str | bytes) -> WebRequest:
    """Read a request of GET, or of another method, with some variables."""
    return read_request(encode_vars({"REQUEST_METHOD": "GET", **variables}), modifier1, PEER)


class TestTarget:
    @pytest.mark.parametrize(
        ("sent", "path", "uri"),
        [
            ("/a/b?x=1", "/a/b", b"/a/b"),
            ("/a%2Fb", "/a/b", b"/a%2Fb"),
            ("/caf%C3%A9", "/caf\xe9".encode(), b"/caf%C3%A9"),
            ("/prefix/a%2Fb", "/a/b", b"/a/b"),
            ("/a//b/../c", "/a/c", b"/a/c"),
            ("http://localhost/a", "/a", b"/a"),
            ("", "/a b?", b"/a%20b%3F"),
            ("", "", b"/"),
            ("/a\r\nb", "/a\r\nb", b"/a%0D%0Ab"),
            ("/\xe9".encode("latin-1"), "/\xe9".encode("latin-1"), b"/%E9"),
        ],
    )
    def test_path(self, sent: str | bytes, path: str | bytes, uri: bytes) -> None:
        """The path is as the browser has sent it, unless the web server has made another one of it."""
        assert read(REQUEST_URI=sent, PATH_INFO=path).uri == uri

    def test_query(self) -> None:
        """The query is the web server's, which may have changed it."""
        found = read(REQUEST_URI="/a?x=1", PATH_INFO="/a", QUERY_STRING="y=%20")
        assert found.uri == b"/a?y=%20"

    @pytest.mark.parametrize(
        ("modifier1", "script", "path", "uri", "mount"),
        [
            (0, "", "/a", b"/a", 0),
            (0, "/app", "/a", b"/app/a", 1),
            (0, "/app/", "", b"/app/", 1),
            (0, "app/two", "/a", b"/app/two/a", 2),
            (30, "/app", "/app/a", b"/app/a", 1),
            (30, "/app", "/app", b"/app", 1),
            (30, "/app", "/application", b"/app/application", 1),
            (30, "", "/a", b"/a", 0),
        ],
    )
    def test_mount(self, modifier1: int, script: str, path: str, uri: bytes, mount: int) -> None:
        """The segments of SCRIPT_NAME lead to the application; with modifier 30, the path includes them."""
        found = read(modifier1, SCRIPT_NAME=script, PATH_INFO=path)
        assert (found.uri, found.mount) == (uri, mount)


class TestHeaders:
    def test_headers(self) -> None:
        """Headers have their names back; those that describe the way to the web server are dropped."""
        found = read(
            HTTP_HOST="a",
            HTTP_X_Y="1",
            CONTENT_TYPE="text/plain",
            CONTENT_LENGTH="5",
            HTTP_CONTENT_TYPE="no",
            HTTP_CONTENT_LENGTH="6",
            HTTP_TRANSFER_ENCODING="chunked",
            UWSGI_SCRIPT="evil",
        )
        assert dict(found.headers) == {
            b"CONTENT-TYPE": b"text/plain",
            b"CONTENT-LENGTH": b"5",
            b"HOST": b"a",
            b"X-Y": b"1",
        }
        assert found.size == 5

    def test_empty_length(self) -> None:
        """Nginx sends an empty length with a request without a body."""
        found = read(CONTENT_LENGTH="", CONTENT_TYPE="")
        assert (found.headers, found.size) == ((), 0)

    @pytest.mark.parametrize(
        ("method", "content_type", "is_form"),
        [
            ("POST", "multipart/form-data; boundary=x", True),
            ("POST", "\xa0Application/X-WWW-Form-Urlencoded".encode("latin-1"), True),
            ("POST", "application/json", False),
            ("PUT", "multipart/form-data; boundary=x", False),
        ],
    )
    def test_forms(self, method: str, content_type: str | bytes, is_form: bool) -> None:
        """A form that is posted is known by its type."""
        assert read(REQUEST_METHOD=method, CONTENT_TYPE=content_type).is_form == is_form

    @pytest.mark.parametrize("name", ["HTTP_", "HTTP_A B", "HTTP_A:", "HTTP_A\r\nB", "HTTP_\xe9"])
    def test_bad_name(self, name: str) -> None:
        """A name that is none is refused."""
        with pytest.raises(MalformedPacket, match="name of a header"):
            read(**{name: "1"})

    @pytest.mark.parametrize("method", ["", "G T", "GET\r\n", "\xe9"])
    def test_bad_method(self, method: str) -> None:
        """A method that is none is refused."""
        with pytest.raises(MalformedPacket, match="REQUEST_METHOD"):
            read(REQUEST_METHOD=method)

    def test_no_variables(self) -> None:
        """So are bytes that are no variables."""
        with pytest.raises(MalformedPacket):
            read_request(b"\x05", 0, PEER)


class TestAddresses:
    @pytest.mark.parametrize(
        ("address", "port", "client"),
        [
            ("192.0.2.1", "4000", IPv4Address("TCP", "192.0.2.1", 4_000)),
            ("2001:db8::1", "4000", IPv6Address("TCP", "2001:db8::1", 4_000)),
            ("192.0.2.1", "", IPv4Address("TCP", "192.0.2.1", 0)),
            ("192.0.2.1", "9" * 5_000, IPv4Address("TCP", "192.0.2.1", 0)),
            ("192.0.2.1", "-1", IPv4Address("TCP", "192.0.2.1", 0)),
            ("unix:", "", PEER.address),
            ("\xe9", "1", PEER.address),
        ],
    )
    def test_client(self, address: str, port: str, client: object) -> None:
        """The client is the browser, as the web server says; where that has no such address, the peer."""
        assert read(REMOTE_ADDR=address, REMOTE_PORT=port).client == client

    @pytest.mark.parametrize(
        ("name", "port", "host"),
        [
            ("example.org", "8080", IPv4Address("TCP", "example.org", 8_080)),
            ("[2001:db8::1]", "80", IPv6Address("TCP", "2001:db8::1", 80)),
            ("", "", IPv4Address("TCP", "", 80)),
            ("\xe9", "", IPv4Address("TCP", "\\xc3\\xa9", 80)),
        ],
    )
    def test_host(self, name: str, port: str, host: object) -> None:
        """The host is the web server, by whatever name it has."""
        assert read(SERVER_NAME=name, SERVER_PORT=port).host == host

    @pytest.mark.parametrize(
        ("variables", "secure"),
        [
            ({}, False),
            ({"HTTPS": "on"}, True),
            ({"HTTPS": "off", "REQUEST_SCHEME": "https"}, False),
            ({"HTTPS": "", "REQUEST_SCHEME": "https"}, True),
            ({"REQUEST_SCHEME": "http"}, False),
        ],
    )
    def test_secure(self, variables: dict[str, str], secure: bool) -> None:
        """HTTPS says whether the request is secure, or else the scheme; the default port follows."""
        found = read(**variables)
        assert found.secure == secure
        assert found.host == IPv4Address("TCP", "", 443 if secure else 80)
