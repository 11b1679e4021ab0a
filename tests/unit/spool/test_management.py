"""What can be asked of a queue, on a real store: answers, changes, and refusals of what isn't understood."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uwsgitwisted.errors import MalformedPacket, MisuseError, SpoolError
from uwsgitwisted.spool.management import changes, queries
from uwsgitwisted.spool.management.arguments import STATES
from uwsgitwisted.spool.management.operations import OPERATIONS, run_operation
from uwsgitwisted.spool.retry import Action, Decision
from uwsgitwisted.spool.stores.interface import Settlement, Want
from uwsgitwisted.spool.stores.sqlite.store import SqliteStore
from uwsgitwisted.spool.task import State, new_task
from uwsgitwisted.wire.objects import dumps, loads
from uwsgitwisted.wire.vars import encode_vars

NOW = 1_700_000_000.0
TRACEBACK = 'Traceback (most recent call last):\n  File "tasks.py", line 1, in run\nKeyError: b"to"\n'


class Queue:
    """A store, and questions to it; what it answers has gone through the wire."""

    def __init__(self, path: Path) -> None:
        self.store = SqliteStore(str(path), keep=1e9)
        self.store.open(lambda: None)

    def ask(self, operation: object, **arguments: object) -> Any:
        return loads(dumps(run_operation(self.store, operation, arguments, NOW)))

    def add(self, body: bytes = b"", **variables: Any) -> int:
        """Store a task."""
        return self.store.add([new_task(encode_vars(variables), NOW, body)])[0]

    def end(self, identifier: int, action: Action, *, error: str = "", result: object = None) -> None:
        """Let a ready task run, and end so."""
        others = [record.task.id for record in self.store.records(1000, state=State.READY)]
        self.store.advance([], {None: Want(len(others))}, NOW)
        for each in others:
            decision = (
                Decision(action, 1, 0, error=error)
                if each == identifier
                else Decision(Action.RETRY, 0, 0, None)
            )
            returned = dumps(result) if each == identifier and result is not None else b""
            self.store.advance([Settlement(each, decision, returned)], {None: Want(0)}, NOW)

    def states(self) -> dict[int, str]:
        """Return the state of each task."""
        return {record.task.id: record.state.name.lower() for record in self.store.records(1000)}


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    made = Queue(tmp_path / "spool.sqlite")
    yield made
    made.store.close()


def in_all_states(queue: Queue) -> dict[str, int]:
    """Store a task in each state, and return their ids."""
    ids = {state: queue.add(name=state) for state in ("done", "dead", "cancelled")}
    queue.end(ids["done"], Action.FINISH, result=[1])
    queue.end(ids["dead"], Action.DEAD_LETTER, error=TRACEBACK)
    queue.end(ids["cancelled"], Action.CANCEL)
    ids["running"] = queue.add(name="running")
    queue.store.advance([], {None: Want(1)}, NOW)
    ids["ready"] = queue.add(name="ready", spooler="mail", priority=3)
    ids["scheduled"] = queue.add(name="scheduled", at=NOW + 60, spooler="mail")
    assert queue.states() == {identifier: state for state, identifier in ids.items()}
    return ids


# Looking.


def test_list(queue: Queue) -> None:
    """A list has the tasks in the order of their ids, and says in few words what each is."""
    identifier = queue.add(b"body", to="ann", priority=3, spooler="mail", at=NOW - 5, idempotency_key="k")
    second = queue.add()
    tasks = queue.ask("list")
    assert [task["id"] for task in tasks] == [identifier, second]
    assert tasks[0] == {
        "id": identifier,
        "state": "ready",
        "queue": "mail",
        "priority": 3,
        "attempts": 0,
        "crashes": 0,
        "created": NOW,
        "at": NOW - 5,
        "started": None,
        "finished": None,
        "error": "",
        "summary": "to=ann",
    }
    assert tasks[1]["priority"] is None


def test_summary_is_short(queue: Queue) -> None:
    """However large a task is, its line in a list is not; what is no text is escaped."""
    queue.add(a="x" * 60_000, b=b"\xff")
    queue.add(b=b"\xff")
    long, odd = (task["summary"] for task in queue.ask("list"))
    assert len(long) <= queries.SUMMARY_LIMIT + 3
    assert odd == "b=\\xff"


@pytest.mark.parametrize("scan", [1, 2, 3, 50])
@pytest.mark.parametrize("page", [1, 2, 50])
def test_list_in_pages(queue: Queue, monkeypatch: pytest.MonkeyPatch, page: int, scan: int) -> None:
    """However many are read, or looked through, at once, as many come as were asked for."""
    monkeypatch.setattr(queries, "SLICE", page)
    monkeypatch.setattr(queries, "SCAN", scan)
    ids = [queue.add() for _ in range(5)]
    assert [task["id"] for task in queue.ask("list", limit=3)] == ids[:3]
    assert [task["id"] for task in queue.ask("list", limit=3, after=ids[2])] == ids[3:]
    assert queue.ask("list", after=ids[4]) == []
    dead = [queue.add() for _ in range(3)]
    queue.end(dead[1], Action.DEAD_LETTER)
    assert [task["id"] for task in queue.ask("dead")] == dead[1:2]
    assert queue.ask("stats")[0]["ready"] == 7
    assert queue.ask("list", after=2**63 - 1) == []


def test_list_by_state_and_queue(queue: Queue) -> None:
    """A list may have only the tasks of a state, of a queue, or of both."""
    ids = in_all_states(queue)
    for state, identifier in ids.items():
        assert [task["id"] for task in queue.ask("list", state=state)] == [identifier]
    assert [task["id"] for task in queue.ask("list", queue="mail")] == [ids["ready"], ids["scheduled"]]
    assert [task["id"] for task in queue.ask("list", queue="mail", state="ready")] == [ids["ready"]]
    assert ids["ready"] not in [task["id"] for task in queue.ask("list", queue="")]


def test_dead(queue: Queue) -> None:
    """The dead letters say what went wrong, in one line."""
    ids = in_all_states(queue)
    (letter,) = queue.ask("dead")
    assert (letter["id"], letter["error"]) == (ids["dead"], 'KeyError: b"to"')
    assert queue.ask("dead", queue="mail") == []


def test_show(queue: Queue) -> None:
    """All about a task: its variables, how large its body is, the whole error, the result."""
    ids = in_all_states(queue)
    dead = queue.add(b"12345", a="b", at=NOW, idempotency_key="key", priority=-1)
    queue.end(dead, Action.DEAD_LETTER, error=TRACEBACK)
    (task,) = queue.ask("show", ids=[dead])
    assert task["variables"] == {
        b"a": b"b",
        b"at": b"1700000000.0",
        b"idempotency_key": b"key",
        b"priority": b"-1",
    }
    assert (task["body_size"], task["error"], task["idempotency_key"]) == (5, TRACEBACK, "key")
    assert (task["priority"], task["state"], task["attempts"]) == (-1, "dead", 1)
    (done,) = queue.ask("show", ids=[ids["done"], 99])
    assert (done["result"], done["priority"]) == (dumps([1]), None)


@pytest.mark.parametrize("operation", ["show", "status"])
def test_results_are_bounded(queue: Queue, monkeypatch: pytest.MonkeyPatch, operation: str) -> None:
    """Large results are in an answer as long as there is room, the first one always; small ones always are."""
    monkeypatch.setattr(queries, "ANSWER_BYTES", 25_000)
    ids = []
    for size in (30_000, 10_000, 10, 12_000):
        ids.append(queue.add())
        queue.end(ids[-1], Action.FINISH, result=bytes(size))
    for asked, sizes in ((ids, [30_000, None, 10, None]), (ids[1:], [10_000, 10, 12_000])):
        results = [task["result"] for task in queue.ask(operation, ids=asked)]
        assert [result and len(loads(result)) for result in results] == sizes


def test_status(queue: Queue) -> None:
    """A status has neither the variables nor where the handler raised; unknown tasks are left out."""
    ids = in_all_states(queue)
    (status,) = queue.ask("status", ids=[ids["dead"], 99])
    assert status["error"] == 'KeyError: b"to"'
    assert "variables" not in status


def test_stats(queue: Queue) -> None:
    """Each queue has its counts; one that is paused is named even if no task is in it."""
    in_all_states(queue)
    queue.ask("pause", queue="empty")
    none = dict.fromkeys(STATES, 0)
    assert queue.ask("stats") == [
        {**none, "queue": "", "paused": False, "running": 1, "done": 1, "dead": 1, "cancelled": 1},
        {**none, "queue": "empty", "paused": True},
        {**none, "queue": "mail", "paused": False, "ready": 1, "scheduled": 1},
    ]


def test_many_queues(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only so many queues are counted one by one, the others together."""
    monkeypatch.setattr(queries, "MAX_QUEUES", 2)
    for name in "abcd":
        queue.add(spooler=name)
    assert [(row["queue"], row["ready"]) for row in queue.ask("stats")] == [("a", 1), ("b", 1), (None, 2)]


# Changing.


@pytest.mark.parametrize(
    ("operation", "before", "after"),
    [
        ("cancel", "scheduled", "cancelled"),
        ("cancel", "ready", "cancelled"),
        ("retry", "dead", "ready"),
        ("retry", "cancelled", "ready"),
        ("drop", "done", None),
        ("drop", "dead", None),
        ("drop", "cancelled", None),
    ],
)
def test_change_by_ids(queue: Queue, operation: str, before: str, after: str | None) -> None:
    """A change says which tasks it has changed; those it can't change stay as they are."""
    ids = in_all_states(queue)
    identifier = ids[before]
    expected = {**queue.states(), identifier: after}
    answer = queue.ask(operation, ids=[identifier, ids["running"] if operation != "cancel" else 99])
    assert answer == {"changed": [identifier], "more": False, "after": max(identifier, answer["after"])}
    assert queue.states() == {task: state for task, state in expected.items() if state}


def test_cancel_of_a_running_task(queue: Queue) -> None:
    """A task that runs is reported to its spooler."""
    ids = in_all_states(queue)
    assert queue.ask("cancel", ids=[ids["running"]])["changed"] == [ids["running"]]
    assert list(queue.store.advance([], {None: Want(0)}, NOW).cancelling) == [ids["running"]]


@pytest.mark.parametrize(
    ("operation", "arguments", "changed"),
    [
        ("cancel", {}, {"scheduled", "ready", "running"}),
        ("cancel", {"state": "ready"}, {"ready"}),
        ("cancel", {"queue": ""}, {"running"}),
        ("retry", {}, {"dead"}),
        ("retry", {"state": "cancelled"}, {"cancelled"}),
        ("drop", {}, {"done", "dead", "cancelled"}),
        ("drop", {"state": "dead", "queue": ""}, {"dead"}),
        ("drop", {"queue": "mail"}, set()),
    ],
)
def test_change_all(queue: Queue, operation: str, arguments: dict[str, object], changed: set[str]) -> None:
    """A change to all is one to those in a state that it can change; of a retry, to the dead letters."""
    ids = in_all_states(queue)
    answer = queue.ask(operation, all=True, **arguments)
    assert answer["changed"] == sorted(ids[state] for state in changed)
    assert not answer["more"]


def test_change_all_in_batches(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change to many is made to some at a time, and the answer says how to go on."""
    monkeypatch.setattr(changes, "CHANGE_BATCH", 2)
    ids = [queue.add() for _ in range(5)]
    first = queue.ask("cancel", all=True)
    assert first == {"changed": ids[:2], "more": True, "after": ids[1]}
    second = queue.ask("cancel", all=True, after=ids[1])
    assert second == {"changed": ids[2:4], "more": True, "after": ids[3]}
    third = queue.ask("cancel", all=True, after=ids[3])
    assert third == {"changed": ids[4:], "more": False, "after": ids[4]}
    assert queue.ask("retry", all=True) == {"changed": [], "more": False, "after": 0}


@pytest.mark.parametrize("arguments", [{}, {"ids": [1], "all": True}, {"all": False}])
def test_a_change_names_tasks_in_one_way(queue: Queue, arguments: dict[str, object]) -> None:
    """A change without ids is not one to everything."""
    queue.add()
    with pytest.raises(SpoolError, match="cancel needs either ids or all"):
        queue.ask("cancel", **arguments)
    assert list(queue.states().values()) == ["ready"]


def test_a_change_that_is_not_possible(queue: Queue) -> None:
    """A state in which a change does nothing is refused, with those in which it does something."""
    with pytest.raises(SpoolError, match="retry changes tasks in these states only: dead, cancelled"):
        queue.ask("retry", all=True, state="running")


def test_pause(queue: Queue) -> None:
    """A paused queue gives out no tasks until it goes on."""
    queue.add(spooler="mail")
    assert queue.ask("pause", queue="mail") is None
    assert queue.store.advance([], {None: Want(1)}, NOW).claimed == []
    assert queue.ask("resume", queue="mail") is None
    assert len(queue.store.advance([], {None: Want(1)}, NOW).claimed) == 1


# Moving.


def test_enqueue(queue: Queue) -> None:
    """New tasks go by their variables, or by their settings if they have some; handlers get the variables."""
    told = encode_vars({"a": "b", "priority": 1, "spooler": "mail"})
    others = encode_vars({"priority": 2, "at": NOW + 5, "idempotency_key": "k"})
    ids = queue.ask("enqueue", tasks=[(told, b"body", b""), (told, b"", others)])
    first, second = queue.store.find(ids)
    assert (first.task.priority, first.task.queue, first.state) == (1, "mail", State.READY)
    assert (second.task.priority, second.task.queue, second.state) == (2, "", State.SCHEDULED)
    assert (second.task.at, second.task.key) == (NOW + 5, "k")
    assert first.task.variables == second.task.variables == told
    assert [queue.store.body(identifier) for identifier in ids] == [b"body", b""]


@pytest.mark.parametrize(
    ("task", "error"),
    [
        ((b"\x01", b"", b""), MalformedPacket),
        ((encode_vars({"at": "never"}), b"", b""), SpoolError),
        ((b"", b"", encode_vars({"at": "never"})), SpoolError),
        ((encode_vars({f"k{n}": "x" * 60_000 for n in range(2)}), b"", b""), MisuseError),
    ],
)
def test_all_or_none(queue: Queue, task: tuple[bytes, ...], error: type[Exception]) -> None:
    """If one of several new tasks is refused, none is stored."""
    with pytest.raises(error):
        queue.ask("enqueue", tasks=[(b"", b"", b""), task])
    assert queue.states() == {}


def test_export(queue: Queue) -> None:
    """What is exported has all that makes up a task."""
    queue.add(b"body", a="b", idempotency_key="k", priority=1)
    (task,) = queue.ask("export")
    assert task["variables"] == encode_vars({"a": "b", "idempotency_key": "k", "priority": 1})
    assert (task["body"], task["idempotency_key"], task["priority"], task["at"]) == (b"body", "k", 1, NOW)
    assert queue.ask("export", state="done") == []


@pytest.mark.parametrize("size", [0, 100_000])
def test_export_is_bounded(queue: Queue, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """An export stops where it has enough bytes, and goes on behind that, with every task once."""
    monkeypatch.setattr(queries, "ANSWER_BYTES", 25 + size)
    ids = [queue.add(b"x" * (10 + size // 2), n=n) for n in range(5)]
    exported: list[int] = []
    while page := queue.ask("export", after=exported[-1] if exported else 0):
        assert len(page) <= 2
        exported += [task["id"] for task in page]
    assert exported == ids


# Refusals.


@pytest.mark.parametrize("operation", ["", "List", "__class__", b"list", None, 1, ("list",)])
def test_unknown_operation(queue: Queue, operation: object) -> None:
    """What is no operation is refused, with those that there are."""
    with pytest.raises(SpoolError, match="there is no such operation; there are list, dead, show"):
        queue.ask(operation)


@pytest.mark.parametrize(
    ("operation", "arguments", "reason"),
    [
        ("list", {"limit": 0}, "limit has to be an integer from 1 to 1000"),
        ("list", {"limit": 1001}, "limit has to be"),
        ("list", {"limit": True}, "limit has to be"),
        ("list", {"limit": 1.0}, "limit has to be"),
        ("list", {"after": -1}, "after has to be"),
        ("list", {"after": 2**63}, "after has to be"),
        ("list", {"state": "Ready"}, "state has to be one of scheduled, ready"),
        ("list", {"state": 1}, "state has to be"),
        ("list", {"state": []}, "state has to be"),
        ("list", {"queue": b"mail"}, "queue has to be the name"),
        ("list", {"queue": "a\0b"}, "queue has to be the name"),
        ("list", {"queue": "\ud800"}, "queue has to be the name"),
        ("list", {"queue": "é" * 128}, "text of up to 255 bytes"),
        ("list", {"Limit": 1}, "list takes a dict of state, queue, after, limit"),
        ("list", {1: 1}, "list takes a dict"),
        ("dead", {"state": "done"}, "dead takes a dict of queue, after, limit"),
        ("stats", {"queue": "mail"}, "stats takes a dict of nothing"),
        ("show", {}, "show needs ids"),
        ("show", {"ids": []}, "ids has to be a list of 1 to 20 ids"),
        ("show", {"ids": list(range(1, 22))}, "a list of 1 to 20 ids"),
        ("status", {"ids": list(range(1, 1002))}, "a list of 1 to 1000 ids"),
        ("show", {"ids": {1}}, "ids has to be"),
        ("show", {"ids": ["1"]}, "ids has to be an integer"),
        ("show", {"ids": [0]}, "ids has to be an integer"),
        ("cancel", {"ids": 1}, "ids has to be"),
        ("cancel", {"all": 1}, "all has to be true or false"),
        ("pause", {}, "pause needs queue"),
        ("pause", {"queue": None}, "queue has to be"),
        ("enqueue", {}, "enqueue needs tasks"),
        ("enqueue", {"tasks": [(b"",) * 3] * 10_001}, "a list of up to 10000 tasks"),
        ("enqueue", {"tasks": [(b"", b"")]}, "a list of tasks, each"),
        ("enqueue", {"tasks": [(b"", "", b"")]}, "a list of tasks, each"),
        ("enqueue", {"tasks": [b"abc"]}, "a list of tasks, each"),
    ],
)
def test_arguments(queue: Queue, operation: str, arguments: Any, reason: str) -> None:
    """Arguments of another kind are refused, with what is taken."""
    with pytest.raises(SpoolError, match=reason):
        run_operation(queue.store, operation, arguments, NOW)


@pytest.mark.parametrize("arguments", [None, [], "limit", 1, [("limit", 1)]])
def test_arguments_are_a_dict(queue: Queue, arguments: object) -> None:
    """So is what is no dict."""
    with pytest.raises(SpoolError, match="list takes a dict of"):
        run_operation(queue.store, "list", arguments, NOW)


_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-1, 9)
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary(max_size=8),
    lambda values: st.lists(values, max_size=4) | st.tuples(values, values, values),
    max_leaves=6,
)
_QUESTIONS = st.sampled_from(sorted(OPERATIONS)).flatmap(
    lambda name: st.tuples(
        st.just(name), st.dictionaries(st.sampled_from([*OPERATIONS[name].takes, "other"]), _VALUES | st.text())
    )
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Queue]:
    made = Queue(tmp_path_factory.mktemp("shared") / "spool.sqlite")
    yield made
    made.store.close()


@given(question=_QUESTIONS)
@settings(max_examples=300, deadline=None)
def test_junk(shared: Queue, question: tuple[str, dict[str, object]]) -> None:
    """Whatever a stranger asks, the answer is one that can be sent, or one of our errors."""
    operation, arguments = question
    with suppress(SpoolError, MalformedPacket):
        shared.ask(operation, **arguments)
