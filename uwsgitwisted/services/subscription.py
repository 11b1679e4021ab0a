"""Announces a node to uWSGI's http and fast routers, which forward requests to the nodes that they know."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from twisted.internet.defer import Deferred, DeferredList, DeferredLock
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import Logger
from twisted.python.failure import Failure

from uwsgitwisted.address import Address, parse_address
from uwsgitwisted.errors import InvalidAddress, UnencodableMessage
from uwsgitwisted.services.listening import Listener, Place, has_tls, opened_port, place_of, write_place
from uwsgitwisted.transport.timer import Timer
from uwsgitwisted.wire.subscription import ANNOUNCE, LEAVE, Subscription

#: Seconds between two announcements, as in uWSGI.
INTERVAL = 10.0
#: Seconds for a router to read that the node leaves, and to connect for requests that it has already assigned.
LEAVE_TIME = 0.1
#: The most seconds for telling the routers that the node leaves, whose names are looked up first.
_LEAVE_TIMEOUT = 2.0
#: Hosts that stand for all interfaces.
_EVERY_INTERFACE = ("0.0.0.0", "::")  # noqa: S104 - they are compared with, not listened on
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class RouterAddress:
    """A router, and what is announced there.

    :param router: where the router takes announcements.
    :param key: which requests the node answers.
    :param address: where the router finds the node; empty for where the node listens.
    """

    router: Address
    key: str
    address: str = ""

    def __str__(self) -> str:
        return f"{self.router},{self.key}"


def parse_subscription(text: str) -> RouterAddress:
    """Parse ``HOST:PORT,KEY`` or ``HOST:PORT,KEY,ADDRESS``.

    :raises ValueError: if it has another form; the text says what to write.
    """
    place, _, rest = text.partition(",")
    key, _, address = rest.partition(",")
    try:
        router = parse_address(place)
        if address:
            parse_address(address)
        Subscription(key, address or "-").encode(ANNOUNCE)
    except (InvalidAddress, UnencodableMessage) as error:
        example = "10.0.0.1:2626,example.com"
        raise ValueError(f"write the router's address and a key, such as {example} ({error})") from error
    if router.kind == "tls":
        raise ValueError("announcements are datagrams, without TLS; write HOST:PORT or a path")
    return RouterAddress(router, key, address)


def find_place(listeners: Sequence[Listener]) -> Place | None:
    """Return where a router can connect to a node: its first open port without TLS; None if there is none."""
    for listener in listeners:
        port = opened_port(listener)
        if port is not None and not has_tls(listener.description):
            return place_of(port)
    return None


def send_datagram(router: Address, subscription: Subscription, kind: int, here: Place | None) -> None:
    """Send a datagram to a router. It blocks while it looks up the router's name.

    :param kind: :data:`~uwsgitwisted.wire.subscription.ANNOUNCE` or
        :data:`~uwsgitwisted.wire.subscription.LEAVE`.
    :param here: what is announced if *subscription* has no address.
    :raises OSError: if the datagram can't be sent.
    """
    family, target = _target(router)
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        sender.connect(target)
        if not subscription.address and here is not None:
            subscription = replace(subscription, address=_reachable(here, sender))
        sender.send(subscription.encode(kind))


def send_in_thread(
    router: Address, subscription: Subscription, kind: int, here: Place | None
) -> Deferred[None]:
    """Call :func:`send_datagram` in a thread.

    :return: fires when the datagram is sent; fails if it can't be.
    """
    return deferToThread(send_datagram, router, subscription, kind, here)


def _target(router: Address) -> tuple[int, Any]:
    if router.kind == "unix":
        return socket.AF_UNIX, router.path
    family, _, _, _, target = socket.getaddrinfo(router.host, router.port, type=socket.SOCK_DGRAM)[0]
    return family, target


def _reachable(place: Place, sender: socket.socket) -> str:
    """Write a place as an address; for a port on all interfaces, with the one that leads to the router."""
    if not isinstance(place, str) and place[0] in _EVERY_INTERFACE:
        place = LOOPBACK if sender.family == socket.AF_UNIX else sender.getsockname()[0], place[1]
    return write_place(place)


class Announcer:
    """Announces a node again and again, until it leaves.

    :param clock: for the time between announcements.
    :param routers: where, and as what.
    :param subscription: what is announced, but for the key and the address.
    :param here: the host and port at which the node listens, or its path, for the routers without an address.
    :param load: returns how many requests wait.
    :param send: sends a datagram; its parameters are those of :func:`send_in_thread`.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        routers: Sequence[RouterAddress],
        subscription: Subscription,
        here: Place | None,
        load: Callable[[], int],
        send: Callable[[Address, Subscription, int, Place | None], Deferred[None]] = send_in_thread,
    ) -> None:
        self._clock = clock
        self._routers = routers
        self._subscription = subscription
        self._here = here
        self._load = load
        self._send = send
        self._timer = Timer(clock, self.start)
        self._failing: set[RouterAddress] = set()
        # A withdrawal must not overtake an announcement, whose router is still being looked up.
        self._sending = DeferredLock()

    def start(self) -> None:
        """Announce the node now, and every :data:`INTERVAL` seconds."""
        self._timer.set(INTERVAL)
        if not self._sending.locked:
            self._send_all(ANNOUNCE)

    def leave(self) -> Deferred[None]:
        """Announce the node no more, and tell the routers.

        :return: fires when they have had time to read it, or when telling them takes too long.
        """
        self._timer.clear()
        left = self._send_all(LEAVE).addTimeout(_LEAVE_TIMEOUT, self._clock, lambda _, seconds: None)
        return left.addCallback(lambda _: deferLater(self._clock, LEAVE_TIME))

    def _send_all(self, kind: int) -> Deferred[None]:
        return self._sending.run(self._send_each, kind)

    def _send_each(self, kind: int) -> Deferred[None]:
        load = self._load()
        sent = []
        for router in self._routers:
            what = replace(self._subscription, key=router.key, address=router.address, load=load)
            answer = self._send(router.router, what, kind, self._here)
            sent.append(answer.addCallback(self._on_sent, router).addErrback(self._on_failure, router))
        return DeferredList(sent).addCallback(lambda _: None)

    def _on_sent(self, _: None, router: RouterAddress) -> None:
        if router in self._failing:
            self._failing.remove(router)
            self._log.info("--subscribe {router}: announced again", router=router)

    def _on_failure(self, failure: Failure, router: RouterAddress) -> None:
        """Log the first failure in a row."""
        if router not in self._failing:
            self._failing.add(router)
            self._log.warn(
                "--subscribe {router}: not announced: {reason}; trying again every {seconds:g} s",
                router=router,
                reason=failure.getErrorMessage(),
                seconds=INTERVAL,
            )
