"""A ``concurrent.futures.Executor`` whose workers are the nodes of a cluster."""

from __future__ import annotations

from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

from uwsgitwisted.blocking.cluster import Cluster
from uwsgitwisted.errors import MisuseError
from uwsgitwisted.timeouts import check_timeout
from uwsgitwisted.wire.message import encode_request

#: How many requests are in flight by default: a few for each node of a usual cluster.
DEFAULT_IN_FLIGHT = 32


class ClusterExecutor(Executor):
    """Has nodes do what code gives to an executor.

    A thread waits for each request in flight, with a session of its own; many small items are faster with
    :meth:`Cluster.map <uwsgitwisted.blocking.cluster.Cluster.map>`.

    :param cluster: the nodes.
    :param modifier1: the kind of request, such as 33.
    :param modifier2: a number from 0 to 255 that the handler gets.
    :param timeout: seconds for each request, other nodes included.
    :param idempotent: whether an item may run twice, if a node dies with it.
    :param in_flight: how many requests there are at once at most; the others wait in the executor.
    :raises MisuseError: if a number is out of its range.
    """

    def __init__(
        self,
        cluster: Cluster,
        modifier1: int,
        modifier2: int,
        *,
        timeout: float = 30,
        idempotent: bool = False,
        in_flight: int = DEFAULT_IN_FLIGHT,
    ) -> None:
        encode_request(modifier1, modifier2, b"")
        if type(in_flight) is not int or in_flight < 1:
            raise MisuseError(f"in_flight is {in_flight!r}; it is a number from 1")
        self._cluster = cluster
        self._modifiers = modifier1, modifier2
        self._timeout = check_timeout(timeout)
        self._idempotent = idempotent
        self._threads = ThreadPoolExecutor(in_flight, thread_name_prefix="cluster")

    def submit(self, fn: object, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Send an item to the node with the shortest expected wait.

        :param fn: the item. A function isn't sent, since the nodes' handler takes its place: then the item is
            its argument, or the list of its arguments.
        :return: the future of the answer. Cancelling it works until its request is sent.
        :raises MisuseError: if there are keyword arguments, or no item.
        :raises RuntimeError: if the executor was shut down.
        """
        if kwargs:
            raise MisuseError("a handler takes one object, so pass no keyword arguments")
        return self._threads.submit(self._send, _item(fn, args))

    def _send(self, item: object) -> object:
        return self._cluster.send_message(*self._modifiers, item, self._timeout, idempotent=self._idempotent)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take nothing more.

        :param wait: whether to wait until all that was submitted is answered.
        :param cancel_futures: whether to cancel what isn't sent yet.
        """
        self._threads.shutdown(wait, cancel_futures=cancel_futures)


def _item(fn: object, args: tuple[Any, ...]) -> object:
    if not callable(fn):
        if args:
            raise MisuseError("submit takes one item, or a function and its arguments")
        return fn
    if not args:
        raise MisuseError("a function isn't sent, and there is no item")
    return args[0] if len(args) == 1 else list(args)
