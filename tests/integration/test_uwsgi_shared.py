"""What the processes of one node share, seen through its workers and mules: two workers and two mules."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.services import TERMINATED, Launcher, Service, is_alive, script, until
from tests.uwsgi_names import distribution_file
from uwsgitwisted import blocking
from uwsgitwisted.errors import RemoteError, UwsgiError

pytestmark = pytest.mark.integration

HANDLER = """
import os, socket, time, threading, uwsgi
from uwsgidecorators import *

socket.setdefaulttimeout(0.1)  # not for what this process has of ours

RAN = "ran.txt"

def note(*words):
    with open(RAN, "a") as file:
        file.write(" ".join(map(str, words)) + "\\n")

def who():
    return f"w{uwsgi.worker_id()}" if uwsgi.worker_id() else f"m{uwsgi.mule_id()}"

@signal(40)
def any_worker(number):
    note("any", number, who())

@signal(41, target="workers")
def all_workers(number):
    note("all", who())

@signal(42, target="worker2")
def second(number):
    note("second", who())

@signal(43, target="mule2")
def in_mule(number):
    note("mule", who())

@signal(44)
def fails(number):
    raise ValueError("this signal fails")

@signal(45)
def never_ends(number):
    uwsgi.lock(8)
    note("hangs", who())
    while True:
        time.sleep(1)

@mstimer(50, target="mule2")
def often(number):
    uwsgi.metric_inc("ticks")

@filemon("watched.txt")
def changed(number):
    note("changed", who())

@timer(1000)
def rarely(number):
    pass

@cron(0, 0, 30, 2, -1)
def never(number):  # it would be one signal more of those that are counted
    pass

@mulefunc
def work(a, b=None):
    note("work", a, b, who())

@mulefunc(2)
def work_in_second(a):
    note("work2", a, who())

@muleloop(1)
def loop():
    message = uwsgi.mule_get_msg(timeout=60)
    if message:
        note("message", message.decode(), who())
        if message == b"die":
            os._exit(3)

@mule(4)
def at_start():
    note("at start", who(), uwsgi.cache_get("import"))

@mulemsg(4)
def each_message(message):
    note("each message", message.decode(), who())
    if message == b"fail":
        raise ValueError("this message fails")

@lock
def exclusive(seconds):
    before = uwsgi.metric_get("inside")
    uwsgi.metric_inc("inside")
    time.sleep(seconds)
    uwsgi.metric_dec("inside")
    return before

def hold(path):
    uwsgi.lock(7)
    note("holds", os.getpid())
    while not os.path.exists(path):
        time.sleep(0.01)

def locked_twice():
    uwsgi.lock(1)
    try:
        uwsgi.lock(1)
    finally:
        uwsgi.unlock(1)

def in_threads(count):
    results = []
    def run(i):
        uwsgi.cache_inc("threads")
        results.append(i)
    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    return uwsgi.cache_num("threads")

def in_fork():
    uwsgi.cache_set("parent", b"1")
    pid = os.fork()
    if not pid:
        uwsgi.cache_update("child", uwsgi.cache_get("parent") + b"2")
        os._exit(0)
    os.waitpid(pid, 0)
    return uwsgi.cache_get("child"), uwsgi.cache_get("parent")

def program():
    note("program", who(), uwsgi.cache_get("import"))
    message = uwsgi.mule_get_msg()
    note("program got", message, who())

uwsgi.cache_set("import", b"set by an import")

# PyPI's own module, as a program has it that brings it along
import importlib.util
specification = importlib.util.spec_from_file_location("published", os.environ["PUBLISHED"])
published = importlib.util.module_from_spec(specification)
specification.loader.exec_module(published)

@published.signal(60, target="workers")
def published_signal(number):
    note("published signal", who())

@published.timer(1000)
def published_timer(number):
    pass

@published.mulefunc(2)
def published_mulefunc(a):
    note("published mulefunc", a, who())

@published.mule(5)
def published_at_start():
    note("published at start", who())

@published.mulemsg(5)
def published_message(message):
    note("published message", message.decode(), who())
    if message == b"fail":
        raise ValueError("this message fails, too")

def figures():
    names = ("id", "pid", "requests", "signals", "status")
    return [[worker[name] for name in names] for worker in uwsgi.workers()], uwsgi.total_requests()

def wait_signal(number):
    uwsgi.cache_update("waits", b"1")
    uwsgi.signal_wait(number)
    return uwsgi.signal_received(), uwsgi.worker_id()

def answer(message, modifier2):
    name, *arguments = message
    function = getattr(uwsgi, name, None) or globals()[name]
    return function(*arguments)

uwsgi.message_manager_marshal = answer
"""


class Node:
    """The node of these tests.

    :param service: its service.
    """

    def __init__(self, service: Service) -> None:
        self.service = service

    def call(self, *message: object) -> Any:
        """Call a function of the handler module, or of uwsgi, in any worker."""
        return script(blocking.send_message, self.service.address, 33, 0, list(message))

    def call_later(self, *message: object) -> threading.Thread:
        """Do the same in a thread; its error is dropped."""

        def run() -> None:
            with contextlib.suppress(UwsgiError):
                self.call(*message)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    @property
    def ran(self) -> list[str]:
        """What functions have noted."""
        path = self.service.directory / "ran.txt"
        return path.read_text().splitlines() if path.exists() else []

    def wait_for(self, *lines: str) -> None:
        """Wait until functions have noted these lines."""
        until(lambda: all(line in self.ran for line in lines), f"{lines} noted")

    def wait_for_one(self, start: str) -> str:
        """Wait until functions have noted a line that starts so, and return it."""
        until(lambda: any(line.startswith(start) for line in self.ran), f"{start} noted")
        return next(line for line in self.ran if line.startswith(start))


@pytest.fixture(scope="module")
def node(shared: Launcher) -> Iterator[Node]:
    """Two workers, and five mules: @muleloop, @mulefunc, a program, and two with @mule and @mulemsg."""
    options = ("--engine", "processes:2", "--timeout", "2", "--cache", "name=small,items=2")
    options += ("--mules", "2", "--mule", "my_handler:program", *2 * ("--mule", "my_handler:unreached"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PUBLISHED", str(distribution_file("uwsgidecorators", "uwsgidecorators.py")))
        yield Node(shared.start("uwsgi-node", *options, handler=HANDLER))


def test_cache_is_shared(node: Node) -> None:
    """Both workers, threads, and forked processes see the same cache; what isn't there is None."""
    assert node.call("cache_set", "key", b"value") is True
    assert node.call("cache_set", "key", b"other") is None
    assert [node.call("cache_get", "key") for _ in range(4)] == [b"value"] * 4
    assert node.call("cache_get", "none") is None
    assert node.call("in_threads", 20) == 20
    assert node.call("in_fork") == (b"12", b"1")


def test_cache_is_bounded(node: Node) -> None:
    """A full cache refuses an item, and a cache that no option names is an error that names the option."""
    assert [node.call("cache_set", key, b"1", 0, "small") for key in "abc"] == [True, True, None]
    assert node.call("cache_keys", "small") == [b"a", b"b"]
    until(lambda: "the cache 'small' has refused an item" in node.service.log, "the refusal in the log")
    assert node.call("cache_set", "large", bytes(2_000_000)) is None
    with pytest.raises(RemoteError, match="there is no cache 'none'; give the node --cache name=none"):
        node.call("cache_get", "key", "none")


def test_queue_and_metrics_are_shared(node: Node) -> None:
    """What one worker pushes, another pulls, and both count together."""
    assert [node.call("queue_push", item) for item in (b"1", b"2", b"3")] == [True] * 3
    assert node.call("queue_last", 4) == [b"3", b"2", b"1", None]
    assert (node.call("queue_pull"), node.call("queue_pop"), node.call("queue_pull")) == (b"1", b"3", b"2")
    assert node.call("queue_pull") is None
    for _ in range(4):
        node.call("metric_inc", "counted", 2)
    assert node.call("metric_get", "counted") == 8


def test_lock_excludes(node: Node) -> None:
    """Two workers never run a function with @lock at once, and who would wait for itself gets an error."""
    threads = [node.call_later("exclusive", 0.05) for _ in range(4)]
    results = [node.call("exclusive", 0.05) for _ in range(2)]
    for thread in threads:
        thread.join()
    assert results == [0, 0]
    with pytest.raises(RemoteError, match="this thread holds it already"):
        node.call("locked_twice")
    assert node.call("is_locked", 1) is False


def test_killed_holder_frees_its_lock(node: Node) -> None:
    """A worker that is killed while it holds a lock, or waits for one, costs nobody else anything."""
    holder = node.call_later("hold", "never")
    pid = int(node.wait_for_one("holds").split()[1])
    assert node.call("is_locked", 7) is True
    os.kill(pid, signal.SIGKILL)
    holder.join()
    until(lambda: node.call("is_locked", 7) is False, "the lock is free")
    assert node.call("cache_get", "key") == b"value"


def test_signals_have_targets(node: Node) -> None:
    """A signal reaches any worker, all, one of them, or a mule, as it was registered."""
    for number in (40, 41, 42, 43):
        assert node.call("signal", number) is None
    node.wait_for("all w1", "all w2", "second w2", "mule m2")
    node.wait_for_one("any 40 w")
    assert node.call("signal_registered", 40) is True
    assert node.call("signal_registered", 99) is None


def test_workers(node: Node) -> None:
    """Each worker knows what both have done, also while the other one is busy; signals are no requests."""
    seen = len(node.ran)
    holder = node.call_later("hold", "released")
    until(lambda: any(line.startswith("holds") for line in node.ran[seen:]), "a worker holds the lock")
    (pid,) = [int(line.split()[1]) for line in node.ran[seen:]]
    before, total = node.call("figures")
    node.call("signal", 42)
    (node.service.directory / "released").touch()
    holder.join()
    until(lambda: "second w2" in node.ran[seen:], "the signal has run")
    questions: list[Any] = []

    def signals() -> int:
        """Ask again how many signals there were: one is counted a moment after its function's note."""
        questions.append(node.call("figures"))
        return sum(worker[3] for worker in questions[-1][0])

    until(lambda: signals() > sum(worker[3] for worker in before), "the count of the signal")
    after, later = questions[-1]
    assert [worker[0] for worker in before] == [1, 2]
    assert [worker[4] for worker in before if worker[1] == pid] == [b"busy"]
    # The first question, the signal's call, the holder, and the questions before the last; the signal is none.
    assert later == total + 2 + len(questions)
    assert sum(worker[3] for worker in after) == sum(worker[3] for worker in before) + 1
    assert later == sum(worker[2] for worker in after)
    assert node.call("logsize") > 0


def test_signal_that_fails(node: Node) -> None:
    """A signal's function that raises is in the log, and so is a signal that nobody handles."""
    node.call("signal", 44)
    node.call("signal", 99)
    node.service.wait_for("signal 44: ValueError: this signal fails")
    node.service.wait_for("signal 99 was raised, and nothing has registered it")


def test_signal_has_the_time_limit(node: Node) -> None:
    """A signal's function that doesn't end is killed with its worker, as a request is, and its lock is free."""
    node.call("signal", 45)
    node.wait_for_one("hangs w")
    assert node.call("is_locked", 8) is True
    node.service.wait_for("signal 45: the request exceeded the node's limit of 2 s")
    until(lambda: node.call("is_locked", 8) is False, "the lock is free")


def test_signal_wait(node: Node) -> None:
    """A worker that waits for a signal gets it, and runs its function."""
    results: list[Any] = []
    waiting = threading.Thread(target=lambda: results.append(node.call("wait_signal", 40)))
    waiting.start()
    until(lambda: node.call("cache_get", "waits"), "a worker waits")

    def signal_again() -> list[Any]:
        node.call("signal", 40)
        waiting.join(0.05)
        return results

    until(signal_again, "the end of the wait")
    assert results[0][0] == 40
    assert f"any 40 w{results[0][1]}" in node.ran


def test_timers_and_files(node: Node) -> None:
    """A timer of milliseconds ticks in its target, and a changed file runs its function."""
    until(lambda: node.call("metric_get", "ticks") >= 3, "three ticks")
    (node.service.directory / "watched.txt").write_text("changed")
    node.wait_for_one("changed w")


def test_mules(node: Node) -> None:
    """Mules get functions' calls and messages; one that dies is started again."""
    node.call("work_in_second", 5)
    node.call("mule_msg", b"hello", 1)
    node.wait_for("work2 5 m2", "message hello m1")
    node.call("mule_msg", b"die", 1)
    node.wait_for("message die m1")
    node.call("mule_msg", b"again", 1)
    node.wait_for("message again m1")
    with pytest.raises(RemoteError, match="this service has no mule 6: it has 1 to 5"):
        node.call("mule_msg", b"lost", 6)
    with pytest.raises(RemoteError, match="only in a mule"):
        node.call("mule_get_msg")


def test_mule_with_a_program(node: Node) -> None:
    """A mule runs its program, which gets messages too; when that has ended, it is started again."""
    node.wait_for("program m3 b'set by an import'")
    node.call("mule_msg", b"to the program", 3)
    node.wait_for("program got b'to the program' m3")
    until(lambda: node.ran.count("program m3 b'set by an import'") == 2, "a second run")


def test_decorated_mules(node: Node) -> None:
    """@mule runs when its mule starts, then @mulemsg gets each message; when it raises, both start again."""
    node.call("mule_msg", b"one", 4)
    node.call("mule_msg", b"fail", 4)
    node.call("mule_msg", b"two", 4)
    node.wait_for("each message one m4", "each message fail m4", "each message two m4")
    started = "at start m4 b'set by an import'"
    assert [line for line in node.ran if line.endswith("m4") or line == started] == [
        *(started, "each message one m4", "each message fail m4", started, "each message two m4")
    ]
    node.service.wait_for("ValueError: this message fails")


def test_published_decorators(node: Node) -> None:
    """PyPI's own uwsgidecorators has signals, timers and mules too."""
    node.call("signal", 60)
    node.call("published_mulefunc", 5)
    node.wait_for("published signal w1", "published signal w2", "published mulefunc 5 m2")


def test_published_mules(node: Node) -> None:
    """PyPI's own @mule and @mulemsg do as ours: when a function raises, the mule starts again."""
    node.wait_for("published at start m5")
    for message in (b"one", b"fail", b"two"):
        node.call("mule_msg", message, 5)
    names = ("published message one m5", "published message fail m5", "published message two m5")
    node.wait_for(*names)
    assert [line for line in node.ran if line.endswith("m5")] == [
        *("published at start m5", *names[:2], "published at start m5", names[2])
    ]
    node.service.wait_for("ValueError: this message fails, too")


def test_reload_replaces_what_was_registered(node: Node) -> None:
    """After a reload, the timers of the old code have ended, mules run the new code, and the cache is kept."""
    handler = node.service.directory / "my_handler.py"
    handler.write_text(
        HANDLER.replace('metric_inc("ticks")', 'metric_inc("new ticks")').replace("(50,", "(60,")
    )
    node.service.process.send_signal(signal.SIGHUP)
    node.service.wait_for("every worker was replaced")
    until(lambda: node.call("metric_get", "new ticks") >= 2, "two ticks of the new timer")
    before = node.call("metric_get", "ticks")
    until(lambda: node.call("metric_get", "new ticks") >= 5, "more ticks of the new timer")
    assert node.call("metric_get", "ticks") == before
    assert node.call("cache_get", "key") == b"value"


TASKS = """
import uwsgi
from uwsgidecorators import signal, spool

@signal(7, target="spooler")
def counted(number):
    print("signal in the spooler after", uwsgi.cache_num("tasks"), "tasks", flush=True)

@spool
def work(arguments):
    uwsgi.lock()
    uwsgi.cache_inc("tasks")
    uwsgi.unlock()
    uwsgi.signal(7)
"""


def test_spooler(shared: Launcher) -> None:
    """The workers of a spooler share state too, and have signals."""
    spooler = shared.start(
        "uwsgi-spooler", "--engine", "processes:2", "--spool", "sqlite:spool.sqlite", handler=TASKS
    )
    for _ in range(2):
        script(blocking.spool, spooler.address, {"ud_spool_func": "work"})
    spooler.wait_for("signal in the spooler after 2 tasks")


def test_stop_ends_mules(node: Node) -> None:
    """The service's end leaves no worker and no mule."""
    until(lambda: len(node.service.workers()) == 7, "the old processes have ended")
    processes = node.service.workers()
    assert node.service.terminate() == TERMINATED
    assert not any(map(is_alive, processes))
