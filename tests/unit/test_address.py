"""Addresses: every accepted spelling, every refused one, and the way to Twisted's description and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.endpoints import _parse as parse_as_twisted

from uwsgitwisted.address import Address, parse_address
from uwsgitwisted.errors import InvalidAddress, UwsgiError

ACCEPTED = [
    (("node1", 3033), Address("tcp", "node1", 3033)),
    (("node1", "3033"), Address("tcp", "node1", 3033)),
    (["node1", 3033], Address("tcp", "node1", 3033)),
    (("::1", 3033), Address("tcp", "::1", 3033)),
    ("node1:3033", Address("tcp", "node1", 3033)),
    ("[::1]:3033", Address("tcp", "::1", 3033)),
    ("tcp:node1:3033", Address("tcp", "node1", 3033)),
    ("TCP:node1:3033", Address("tcp", "node1", 3033)),
    ("tcp:host=node1:3033", Address("tcp", "node1", 3033)),
    ("tcp:node1:port=3033", Address("tcp", "node1", 3033)),
    (r"tcp:\:\:1:3033", Address("tcp", "::1", 3033)),
    (
        "tcp:host=node1:port=3033:timeout=5",
        Address("tcp", "node1", 3033, options=(("timeout", "5"),)),
    ),
    ("/run/app.sock", Address("unix", path="/run/app.sock")),
    ("/run/a:b=c.sock", Address("unix", path="/run/a:b=c.sock")),
    ("./app.sock", Address("unix", path="./app.sock")),
    ("unix:/run/app.sock", Address("unix", path="/run/app.sock")),
    (r"unix:path=/run/a\:b=c.sock", Address("unix", path="/run/a:b=c.sock")),
    (
        "tls:node1:3033:trustRoots=/etc/ca:certificate=me.pem",
        Address("tls", "node1", 3033, options=(("certificate", "me.pem"), ("trustRoots", "/etc/ca"))),
    ),
]

REFUSED = [
    ("", "no port"),
    ("node1", "no port"),
    ("run/app.sock", "no port"),
    ("node1:", "not a port"),
    (":3033", "the host is not a name"),
    ("node1:0", "0 is not a port"),
    ("node1:65536", "not a port"),
    ("node1:-1", "not a port"),
    ("node1:٣", "not a port"),
    ("node1:" + "1" * 5000, "not a port"),
    ("::1:3033", "stands in brackets"),
    ("ssl:node1:3033", "no endpoint is called 'ssl'"),
    ("no de:3033", "can't be a host"),
    ("a/b:3033", "can't be a host"),
    ("tcp:node1", "it has no port"),
    ("tcp:", "it has no port"),
    ("tcp::3033", "the host is not a name"),
    ("tcp:node1:3033:4", "'4' is one argument too many"),
    ("tcp:node1:3033:trustRoots=/x", "tcp takes no 'trustRoots'"),
    ("tcp:node1:3033:timeout=soon", "timeout 'soon'"),
    ("tcp:node1:3033\\", "a backslash that escapes nothing"),
    ("unix:", "can't be a path"),
    ("/run/\0", "can't be a path"),
    ("tls:node1:3033:hostname=other", "tls takes no 'hostname'"),
    (("node1", True), "True is not a port"),
    (("node1", 3033.0), "3033.0 is not a port"),
    ((b"node1", 3033), "the host is not a name"),
    (("node1",), "not an address; write"),
    (("node1", 3033, b"message"), "not an address; write"),
    (None, "not an address; write"),
    (3033, "not an address; write"),
]


@pytest.mark.parametrize(("written", "meant"), ACCEPTED)
def test_accepted(written: object, meant: Address) -> None:
    """Every accepted spelling gives the address that is meant."""
    assert parse_address(written) == meant  # type: ignore[arg-type]


@pytest.mark.parametrize(("written", "reason"), REFUSED)
def test_refused(written: object, reason: str) -> None:
    """Anything else is refused with the address, the reason and the forms that are accepted."""
    with pytest.raises(InvalidAddress) as caught:
        parse_address(written)  # type: ignore[arg-type]
    assert reason in str(caught.value)
    assert str(caught.value) == (caught.value.text if written is None else f"{written}: {caught.value.text}")
    assert "'tls:host:port'" in str(caught.value)
    assert caught.value.address == written
    assert isinstance(caught.value, (UwsgiError, ValueError))


@pytest.mark.parametrize("address", [meant for _, meant in ACCEPTED])
def test_description_means_the_same(address: Address) -> None:
    """The canonical description parses back to the same address, and so does the address itself."""
    assert parse_address(address.description) == address
    assert parse_address(address) is address


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (Address("tcp", "node1", 3033), "node1:3033"),
        (Address("tcp", "::1", 3033), "[::1]:3033"),
        (Address("unix", path="/run/a.sock"), "/run/a.sock"),
        (Address("tls", "node1", 3033, options=(("timeout", "5"),)), "tls:node1:3033"),
    ],
)
def test_text(address: Address, text: str) -> None:
    """In a message an address reads as users write it."""
    assert str(address) == text


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1))
def test_any_path_survives_twisted(path: str) -> None:
    """Twisted reads any path out of the description as it was."""
    description = Address("unix", path=path, options=(("timeout", "3"),)).description
    assert parse_as_twisted(description) == (["unix", path], {"timeout": "3"})
    assert parse_address(description).path == path


@given(st.text("tcpunixls:=\\[]/ h1é\0"))
def test_junk_gives_only_our_error(text: str) -> None:
    """Whatever the text, it is an address or InvalidAddress is raised."""
    try:
        address = parse_address(text)
    except InvalidAddress:
        return
    assert parse_address(address.description) == address


def test_equal_addresses_are_one_key() -> None:
    """Addresses that mean the same are the same key of a dict, and can't be changed."""
    address = parse_address("node1:3033")
    assert {address: 1}[parse_address(("node1", 3033))] == 1
    with pytest.raises(AttributeError):
        address.port = 1  # type: ignore[misc]


def test_option() -> None:
    """A keyword of the description can be asked for."""
    address = parse_address("tls:node1:3033:trustRoots=/etc/ca")
    assert address.option("trustRoots") == "/etc/ca"
    assert address.option("certificate") is None
