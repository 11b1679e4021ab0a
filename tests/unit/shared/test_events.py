"""Signals, what raises them, and mules' inboxes, by a clock and without a process."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import pytest
from twisted.internet.task import Clock

from uwsgitwisted.errors import MalformedPacket, MisuseError
from uwsgitwisted.shared.client import Client
from uwsgitwisted.shared.inboxes import MAX_EVENTS
from uwsgitwisted.shared.signals import MAX_FROM_PEERS, MAX_OUTSTANDING
from uwsgitwisted.shared.state import Events, SharedState
from uwsgitwisted.shared.timers import CronFields


class Service:
    """A state with two workers and two mules, in which nothing answers a signal by itself."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.delivered: list[tuple[int, int]] = []
        self.ends: list[Callable[[], None]] = []
        self.log: list[str] = []
        self.watched: dict[str, Callable[[], None]] = {}
        events = Events(self.clock, self._deliver, self._watch, self.log.append, workers=2, mules=2)
        self.sources = events.sources
        self.signals = events.signals
        self.state = SharedState(self.clock.seconds, log=self.log.append, events=events)
        self.worker = self.state.connect(1)

    def _deliver(self, worker: int, number: int, on_end: Callable[[], None]) -> bool:
        self.delivered.append((worker, number))
        self.ends.append(on_end)
        return True

    def raise_for_peer(self, number: int) -> bool:
        """Raise a signal for a peer; return whether it was taken."""
        return self.signals.fire_for_peer(number, self._deliver)

    def _watch(self, path: str, on_change: Callable[[], None]) -> Callable[[], object]:
        if path == "/none":
            raise MisuseError("there is no such directory")
        self.watched[path] = on_change
        return lambda: self.watched.pop(path)

    def call(self, *items: bytes, client: Client | None = None) -> list[Sequence[bytes] | Exception]:
        """Call an operation; return the list that will have the answer."""
        answers: list[Sequence[bytes] | Exception] = []
        self.state.call(client or self.worker, items, answers.append)
        return answers

    def take(self) -> list[tuple[int, int]]:
        """Return what was delivered, and end it."""
        delivered = self.delivered[:]
        self.delivered.clear()
        ends = self.ends[:]
        self.ends.clear()
        for end in ends:
            end()
        return delivered


@pytest.fixture
def service() -> Service:
    made = Service()
    made.call(b"signal_register", b"1", b"")
    return made


@pytest.mark.parametrize(
    ("target", "workers"),
    [
        (b"", [0]),
        (b"worker", [0]),
        (b"worker0", [0]),
        (b"worker2", [2]),
        (b"workers", [1, 2]),
        (b"active-workers", [1, 2]),
    ],
)
def test_targets(service: Service, target: bytes, workers: list[int]) -> None:
    """A signal goes to any worker, one of them, or all."""
    service.call(b"signal_register", b"5", target)
    service.call(b"signal", b"5")
    assert service.take() == [(worker, 5) for worker in workers]


@pytest.mark.parametrize("target", [b"worker3", b"mule3", b"farm_x", b"spooler", b"bogus", b"worker-1"])
def test_targets_that_are_not_there(service: Service, target: bytes) -> None:
    """A target that this service doesn't have is an error."""
    (answer,) = service.call(b"signal_register", b"5", target)
    assert isinstance(answer, MisuseError)


def test_a_spooler_is_a_target_in_a_spooler() -> None:
    """In a spooler, the workers are the spooler."""
    delivered: list[int] = []
    events = Events(
        Clock(),
        lambda worker, *_: not delivered.append(worker),
        lambda *_: list,
        print,
        workers=1,
        has_spooler=True,
    )
    state = SharedState(float, events=events)
    client = state.connect(1)
    state.call(client, [b"signal_register", b"1", b"spooler"], lambda _: None)
    state.call(client, [b"signal", b"1"], lambda _: None)
    assert delivered == [0]


def test_signals_that_nobody_handles(service: Service) -> None:
    """A signal that isn't registered, and one too many, are dropped with a line in the log."""
    service.call(b"signal", b"9")
    assert "signal 9 was raised, and nothing has registered it" in service.log
    for _ in range(MAX_OUTSTANDING + 1):
        service.call(b"signal", b"1")
    assert len(service.delivered) == MAX_OUTSTANDING
    assert service.log[-1] == f"signal 1 is dropped: it waits {MAX_OUTSTANDING} times already"
    service.take()
    service.call(b"signal", b"1")
    assert service.take() == [(0, 1)]


def test_each_signal_has_a_bound_of_its_own(service: Service) -> None:
    """A signal that is raised without end crowds out no other, neither a call's nor a timer's."""
    service.call(b"signal_register", b"2", b"workers")
    service.call(b"signal_register", b"3", b"")
    service.call(b"timer", b"3", b"1000", b"0")
    for _ in range(MAX_OUTSTANDING + 1):
        service.call(b"signal", b"1")
    service.call(b"signal", b"2")
    service.clock.advance(1)
    assert service.take()[MAX_OUTSTANDING:] == [(1, 2), (2, 2), (0, 3)]


def test_signals_of_peers(service: Service) -> None:
    """A peer's signal is taken if it is registered, and there is room for all who get it."""
    service.call(b"signal_register", b"2", b"workers")
    service.call(b"signal_register", b"3", b"mules")
    assert service.raise_for_peer(9) is False
    assert service.raise_for_peer(2) is True
    assert service.take() == [(1, 2), (2, 2)]
    assert service.raise_for_peer(3) is True
    assert service.call(b"wait", b"-1", b"signal", client=service.state.connect(0, 2)) == [(b"signal", b"3")]
    refused: list[int] = []
    assert service.signals.fire_for_peer(1, lambda *_: bool(refused)) is False


def test_signals_of_peers_crowd_out_no_others(service: Service) -> None:
    """Peers have a bound for their signals together, which leaves the service's own, and its timers, alone."""
    service.call(b"signal_register", b"2", b"workers")
    service.call(b"timer", b"1", b"1000", b"0")
    taken = [service.raise_for_peer(1) for _ in range(MAX_FROM_PEERS - 1)]
    assert all(taken)
    assert service.raise_for_peer(2) is False  # there is room for one worker's, and not for the other's
    assert service.log[-1] == f"signals of peers are dropped: {MAX_FROM_PEERS} wait already"
    assert service.raise_for_peer(1) is True
    assert service.raise_for_peer(1) is False
    service.call(b"signal", b"2")
    service.clock.advance(1)
    assert service.take()[MAX_FROM_PEERS:] == [(1, 2), (2, 2), (0, 1)]
    assert service.raise_for_peer(2) is True


def test_a_worker_waits_for_a_signal(service: Service) -> None:
    """A worker that waits gets a signal for any worker or for it, and not another's or a second one."""
    waiting = service.call(b"wait", b"-1", b"signal")
    other = service.state.connect(2)
    service.call(b"signal_register", b"2", b"worker2", client=other)
    service.call(b"signal", b"2", client=other)
    assert not waiting
    service.call(b"signal", b"1", client=other)
    service.call(b"signal", b"1", client=other)
    assert waiting == [(b"signal", b"1")]
    assert service.take() == [(2, 2), (0, 1)]


def test_waiting_has_a_limit(service: Service) -> None:
    """A call that waits is answered with nothing at its time, and forgotten with its client."""
    waiting = service.call(b"wait", b"1500", b"signal")
    service.clock.advance(1.5)
    assert waiting == [()]
    lost = service.call(b"wait", b"1500", b"signal")
    service.state.lost(service.worker)
    service.call(b"signal", b"1", client=service.state.connect(2))
    assert not lost
    assert service.take() == [(0, 1)]
    assert not service.clock.getDelayedCalls()


def test_waiting_with_a_bad_limit(service: Service) -> None:
    """A call with a limit that is refused doesn't wait, so no message goes to it."""
    mule = service.state.connect(0, 1)
    (answer,) = service.call(b"wait", b"9" * 30, b"message", client=mule)
    assert isinstance(answer, MalformedPacket)
    service.call(b"mule_msg", b"1", b"kept")
    assert service.call(b"wait", b"-1", b"message", client=mule) == [(b"message", b"kept")]


def test_mules_messages(service: Service) -> None:
    """A message waits for its mule, or the first that takes one; the kinds that a call doesn't want stay."""
    first, second = service.state.connect(0, 1), service.state.connect(0, 2)
    service.call(b"signal_register", b"3", b"mule1")
    assert service.call(b"mule_msg", b"2", b"for 2") == [(b"1",)]
    assert service.call(b"mule_msg", b"0", b"any") == [(b"1",)]
    service.call(b"signal", b"3")
    assert service.call(b"wait", b"-1", b"message", client=first) == [(b"message", b"any")]
    waiting = service.call(b"wait", b"-1", b"message", client=first)
    assert not waiting
    assert service.call(b"wait", b"-1", b"message", b"signal", client=second) == [(b"message", b"for 2")]
    service.call(b"mule_msg", b"1", b"")
    assert waiting == [(b"message", b"")]
    assert service.call(b"wait", b"-1", b"signal", client=first) == [(b"signal", b"3")]
    (answer,) = service.call(b"mule_msg", b"3", b"lost")
    assert "it has 1 to 2" in str(answer)


def test_mules_inboxes_are_bounded(service: Service) -> None:
    """What there is no room for is refused: a message to its sender, and a signal in the log."""
    for _ in range(16):
        assert service.call(b"mule_msg", b"1", bytes(1024 * 1024)) == [(b"1",)]
    assert service.call(b"mule_msg", b"2", b"1") == [()]
    service.call(b"signal_register", b"3", b"mules")
    service.call(b"signal", b"3")
    assert "signal 3 is dropped: too much waits for the mules" in service.log


def test_mules_inboxes_have_so_many_slots(service: Service) -> None:
    """Empty messages count too: beyond 10,000, none is taken until a mule has taken one."""
    for _ in range(MAX_EVENTS):
        assert service.call(b"mule_msg", b"1", b"") == [(b"1",)]
    assert service.call(b"mule_msg", b"2", b"") == [()]
    service.call(b"wait", b"-1", b"message", client=service.state.connect(0, 1))
    assert service.call(b"mule_msg", b"2", b"") == [(b"1",)]


def test_a_mule_has_one_process(service: Service) -> None:
    """A mule's successor begins when the mule has ended."""
    old, new = service.state.connect(0, 1), service.state.connect(0, 1)
    assert service.call(b"mule_become", client=old) == [()]
    begun = service.call(b"mule_become", client=new)
    assert not begun
    service.state.lost(old)
    assert begun == [()]


def test_timers(service: Service) -> None:
    """A timer ticks at its times, skips those at which its function still runs, and doesn't drift."""
    service.call(b"timer", b"1", b"1000", b"0")
    service.clock.pump([0.7, 0.4])
    assert service.delivered == [(0, 1)]
    service.clock.advance(0.9)
    service.clock.advance(1.0)
    assert service.take() == [(0, 1)]
    service.clock.advance(0.5)
    assert not service.delivered
    service.clock.advance(0.5)
    assert service.take() == [(0, 1)]
    service.state.stop()
    assert not service.clock.getDelayedCalls()


def test_timers_that_end(service: Service) -> None:
    """A timer with a number of ticks ends after them, and a worker that starts later doesn't begin it again."""
    service.call(b"timer", b"1", b"100", b"2")
    ticks = 0
    for _ in range(5):
        service.clock.advance(0.1)
        ticks += len(service.take())
    assert ticks == 2
    service.call(b"timer", b"1", b"100", b"2", client=service.state.connect(2))
    assert not service.clock.getDelayedCalls()
    service.state.stop()


@pytest.mark.parametrize("milliseconds", [b"0", b"-5", b"9999999999999"])
def test_timers_that_make_no_sense(service: Service, milliseconds: bytes) -> None:
    """A timer's time is above 0, and not thousands of years."""
    (answer,) = service.call(b"timer", b"1", milliseconds, b"0")
    assert isinstance(answer, MisuseError)


def test_each_worker_registers_the_same(service: Service) -> None:
    """What several workers register is there once; a reload ends what only the old code has registered."""
    for _ in range(2):
        service.call(b"timer", b"1", b"1000", b"0")
        service.call(b"file", b"1", b"/old")
    assert len(service.clock.getDelayedCalls()) == 1
    service.state.begin_reload()
    new = service.state.connect(1)
    service.call(b"timer", b"1", b"1000", b"0", client=new)
    service.call(b"timer", b"1", b"3000", b"0", client=new)
    service.state.end_reload(True)
    assert sorted(call.getTime() for call in service.clock.getDelayedCalls()) == [1.0, 3.0]
    assert not service.watched


def test_a_reload_that_fails(service: Service) -> None:
    """If the new code can't be used, what only it has registered ends, and the rest stays."""
    service.call(b"timer", b"1", b"1000", b"0")
    service.state.begin_reload()
    service.call(b"timer", b"1", b"3000", b"0", client=service.state.connect(1))
    service.state.end_reload(False)
    assert [call.getTime() for call in service.clock.getDelayedCalls()] == [1.0]


def test_file_monitors(service: Service) -> None:
    """A change raises a signal; changes while its function runs raise it once more after that."""
    service.call(b"file", b"1", b"/a")
    for _ in range(3):
        service.watched["/a"]()
    assert service.take() == [(0, 1)]
    assert service.take() == [(0, 1)]
    assert service.take() == []
    for path in (b"/none", b"relative"):
        (answer,) = service.call(b"file", b"1", path)
        assert isinstance(answer, MisuseError)


def test_there_are_only_so_many(service: Service) -> None:
    """There may be 256 timers."""
    answers = [service.call(b"timer", b"1", b"%d" % milliseconds, b"0") for milliseconds in range(1, 258)]
    assert answers[255] == [()]
    assert "256 timers already" in str(answers[256][0])
    service.state.stop()


@pytest.mark.parametrize(
    ("fields", "moment", "matches"),
    [
        ((-1, -1, -1, -1, -1), "2026-11-28 05:07", True),
        ((7, 5, 28, 11, 6), "2026-11-28 05:07", True),
        ((7, 5, -1, -1, 5), "2026-11-28 05:07", False),
        ((-5, -1, -1, -1, -1), "2026-11-28 05:10", True),
        ((-5, -1, -1, -1, -1), "2026-11-28 05:11", False),
        ((0, 0, 13, -1, 5), "2026-11-27 00:00", True),
        ((0, 0, 13, -1, 5), "2026-11-13 00:00", True),
        ((0, 0, 13, -1, 5), "2026-11-26 00:00", False),
        ((0, 0, -1, -1, 0), "2026-11-29 00:00", True),
        ((0, 0, -7, -1, 6), "2026-11-28 00:00", True),
        ((0, 0, -9, -1, 6), "2026-11-28 00:00", False),
    ],
)
def test_cron_times(fields: tuple[int, int, int, int, int], moment: str, matches: bool) -> None:
    """A cron job's fields match as in uWSGI: one of a single day and a single weekday is enough."""
    assert CronFields(*fields).match(time.strptime(moment, "%Y-%m-%d %H:%M")) is matches


def test_cron(service: Service) -> None:
    """A cron job runs once in each minute that matches, also where the wall clock stands still."""
    now = [600.0]
    service.sources._now = lambda: now[0]
    minute = time.localtime(720).tm_min
    service.call(b"cron", b"1", b"%d" % minute, b"-1", b"-1", b"-1", b"-1")
    for step, runs in [(60, 0), (60, 1), (0, 0), (60, 0)]:
        now[0] += step
        service.clock.advance(60)
        assert len(service.take()) == runs, (step, runs)
    (answer,) = service.call(b"cron", b"1", b"60", b"-1", b"-1", b"-1", b"-1")
    assert "there is no minute 60" in str(answer)
    service.state.stop()
    assert not service.clock.getDelayedCalls()
