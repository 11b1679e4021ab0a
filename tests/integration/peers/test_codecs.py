"""The decoders of vars and array blocks read any block as a real uWSGI does, but for listed quirks.

``CODEC_EXAMPLES=20000 sh tests/run.sh tests/integration/peers/test_codecs.py`` tries more blocks, and others in
each run.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.integration.peers.conftest import Servers
from tests.integration.services import PATIENCE, read_to_end
from uwsgitwisted.errors import MalformedPacket
from uwsgitwisted.wire.array import decode_array
from uwsgitwisted.wire.packet import HEADER_SIZE, RPC, WSGI, Packet, encode_packet
from uwsgitwisted.wire.vars import decode_vars, encode_item, encode_vars

pytestmark = [pytest.mark.integration, pytest.mark.needs("uwsgi")]

EXAMPLES = os.environ.get("CODEC_EXAMPLES")
#: A few blocks each time, the same ones; many by hand.
codec_examples = settings(
    max_examples=int(EXAMPLES or "150"),
    derandomize=EXAMPLES is None,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

#: The beginning of each vars block, so that uWSGI's application gets it.
REQUEST = encode_vars({"REQUEST_METHOD": "GET", "PATH_INFO": "/show"})
#: The beginning of each array block: the function that shows its arguments.
SHOW = encode_item(b"show")

_short = st.binary(max_size=4) | st.sampled_from([b"", b"K", b"\0", b"\xff\xfe", b"K" * 300])
_item = _short.map(encode_item)
_junk = st.binary(min_size=1, max_size=5)
#: A length that the following bytes may not have.
_lie = st.integers(0, 12).map(lambda size: struct.pack("<H", size))
blocks = st.lists(_item, max_size=8).map(b"".join) | st.lists(_item | _junk | _lie, max_size=8).map(b"".join)


def ask(address: tuple[str, int], packet: Packet) -> bytes:
    """Send a packet to uWSGI and return all that comes back."""
    with socket.create_connection(address, PATIENCE) as connection:
        connection.sendall(encode_packet(packet))
        return read_to_end(connection)


def shown_variables(real: Servers, block: bytes) -> dict[str, str] | None:
    """Return the variables that uWSGI's application gets; None if uWSGI refuses the block."""
    answer = ask(real.node, Packet(WSGI, 0, block))
    if not answer:
        return None
    found: dict[str, str] = json.loads(answer.partition(b"\r\n\r\n")[2])
    return found


def shown_arguments(real: Servers, block: bytes) -> list[bytes] | None:
    """Return the arguments that uWSGI's function gets; None if uWSGI refuses the block."""
    answer = ask(real.node, Packet(RPC, 0, block))
    if not answer:
        return None
    return [argument.encode("latin-1") for argument in json.loads(answer[HEADER_SIZE:])]


def decoded(decode: Any, block: bytes) -> Any:
    """Return what our decoder makes of a block; None if it refuses it."""
    try:
        return decode(block)
    except MalformedPacket:
        return None


# Quirks of uWSGI's, which our decoders don't have.


def slides(block: bytes) -> bool:
    """Whether a key reaches to the end of a vars block or beyond: uWSGI goes on two bytes behind its start."""
    position = 0
    while position + 2 < len(block):
        key_at = position + 2
        value_at = key_at + int.from_bytes(block[position:key_at], "little") + 2
        if value_at - 2 >= len(block):
            return True
        position = value_at + int.from_bytes(block[value_at - 2 : value_at], "little")
    return False


def ends_empty(block: bytes) -> bool:
    """Whether the last item of an array block is empty: uWSGI then refuses the whole call."""
    items = decoded(decode_array, block)
    return bool(items) and not items[-1]


def without_empty_items(items: list[bytes] | None) -> list[bytes] | None:
    """Return the items that uWSGI has: it drops empty ones, so that later ones move up."""
    return None if items is None else [item for item in items if item]


@example(block=b"")
@example(block=encode_vars([("K", "first"), ("K", "last")]))
@example(block=encode_vars({"K": ""}))
@example(block=encode_item(b"") + encode_item(b"v"))
@example(block=encode_item(b"K"))
@example(block=b"\x01\x00K\x01")
@example(block=b"\x01\x00K\x02\x00v")
@given(block=blocks)
@codec_examples
def test_vars(real: Servers, block: bytes) -> None:
    """A vars block has the same variables here and there, or is refused here and there."""
    if slides(block):
        assert decoded(decode_vars, REQUEST + block) is None
        return
    found = shown_variables(real, REQUEST + block)
    expected = decoded(decode_vars, REQUEST + block)
    if expected is None or found is None:
        assert found == expected
        return
    texts = {key.decode("latin-1"): value.decode("latin-1") for key, value in expected.items()}
    assert {key: found.get(key) for key in texts} == texts
    assert len(found) - len(texts) == len(shown_variables(real, REQUEST) or ()) - 2


@example(block=b"")
@example(block=encode_item(b"a") + encode_item(b"") + encode_item(b"b"))
@example(block=encode_item(b"a") + encode_item(b""))
@example(block=encode_item(b"a") + b"\x01")
@example(block=encode_item(b"a") + b"\x02\x00b")
@given(block=blocks)
@codec_examples
def test_array(real: Servers, block: bytes) -> None:
    """An array block has the same items here and there, or is refused here and there."""
    found = shown_arguments(real, SHOW + block)
    if ends_empty(SHOW + block):
        assert found is None
        return
    items = without_empty_items(decoded(decode_array, SHOW + block))
    assert found == (items and items[1:])


def test_quirks_of_numbers(real: Servers) -> None:
    """Arguments beyond 254 are dropped by uWSGI, where we refuse the call; only it limits variables."""
    arguments = [b"%d" % number for number in range(255)]
    assert shown_arguments(real, SHOW + b"".join(map(encode_item, arguments[:254]))) == arguments[:254]
    many = SHOW + b"".join(map(encode_item, arguments))
    assert shown_arguments(real, many) == arguments[:254]
    assert decoded(decode_array, many) is None
    variables = REQUEST + encode_vars([(f"K{number}", "v") for number in range(300)])
    assert shown_variables(real, variables) is None
    assert len(decode_vars(variables)) == 302


def test_a_quirk_of_keys(real: Servers) -> None:
    """Where a key of a vars block reaches beyond the end, uWSGI reads on behind its length."""
    block = REQUEST + b"\xff\x00" + encode_vars({"K": "v"})
    assert (shown_variables(real, block) or {}).get("K") == "v"
    assert decoded(decode_vars, block) is None
