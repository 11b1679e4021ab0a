"""Subscriptions (modifier1 224): the datagrams that announce a node to uWSGI's http and fast router.

The router forwards requests whose key, as a rule the host of HTTP, is that of the subscription. It forgets a
node from which no announcement has come for 17 seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

from uwsgitwisted.errors import UnencodableMessage
from uwsgitwisted.wire.packet import Packet, encode_packet
from uwsgitwisted.wire.vars import VarsValue, encode_vars

SUBSCRIPTION = 224
#: The modifier2 of an announcement, and of its withdrawal.
ANNOUNCE, LEAVE = 0, 1
#: uWSGI keeps keys and addresses in 255 bytes, and ignores a datagram in which one is longer.
MAX_FIELD = 255


@dataclass(frozen=True, slots=True)
class Subscription:
    """What a node announces.

    :param key: which requests it answers.
    :param address: where, as uWSGI writes addresses.
    :param modifier1: what the router puts in the packets of these requests.
    :param modifier2: the same.
    :param cores: how many requests the node runs at once.
    :param load: how many wait there.
    """

    key: str
    address: str
    modifier1: int = 0
    modifier2: int = 0
    cores: int = 1
    load: int = 0

    def encode(self, kind: int) -> bytes:
        """Return the datagram.

        :param kind: :data:`ANNOUNCE` or :data:`LEAVE`.
        :raises UnencodableMessage: if the key or the address is longer than uWSGI accepts, or empty.
        """
        for name, text in (("key", self.key), ("address", self.address)):
            if not 0 < len(text.encode()) <= MAX_FIELD:
                raise UnencodableMessage(f"the {name} {text[:40]!r} must have 1 to {MAX_FIELD} bytes")
        variables: dict[str, VarsValue] = {
            "key": self.key,
            "address": self.address,
            "modifier1": self.modifier1,
            "modifier2": self.modifier2,
            "cores": self.cores,
            "load": self.load,
            "weight": 1,  # uWSGI's default, so that our nodes get the same share as uWSGI's
        }
        return encode_packet(Packet(SUBSCRIPTION, kind, encode_vars(variables)))
