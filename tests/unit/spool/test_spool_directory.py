"""Spool directories of uWSGI: what is taken out, set aside, left alone and put in."""

from __future__ import annotations

import errno
import os
import pickle
import re
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from uwsgitwisted.errors import SpoolError, StoreUnavailable
from uwsgitwisted.spool.task import KEY_LIMIT, LATEST, PRIORITY_LIMIT, UNPRIORITIZED, Task, new_task
from uwsgitwisted.spool.uwsgi import taking
from uwsgitwisted.spool.uwsgi.broken import BROKEN
from uwsgitwisted.spool.uwsgi.directory import SpoolDirectory
from uwsgitwisted.spool.uwsgi.files import PREFIX
from uwsgitwisted.spool.uwsgi.taking import BATCH_LIMIT, GRACE, TaskFileBatch
from uwsgitwisted.wire.objects import dumps
from uwsgitwisted.wire.vars import decode_vars, encode_vars

VARIABLES = encode_vars({"to": "ann"})


def content(variables: bytes = VARIABLES, body: bytes = b"", modifier1: int = 17) -> bytes:
    """Return a file's bytes, put together without the code under test."""
    return struct.pack("<BHB", modifier1, len(variables), 0) + variables + body


@pytest.fixture
def path(tmp_path: Path) -> Path:
    spool = tmp_path / "spool"
    spool.mkdir()
    return spool


@pytest.fixture
def spool(path: Path) -> SpoolDirectory:
    """A directory whose files are long finished."""
    return SpoolDirectory(str(path), now=lambda: time.time() + 2 * GRACE)


def put(path: Path, name: str = "a", data: bytes | None = None, mtime: float | None = None) -> Path:
    """Write a task file as uWSGI does."""
    file = path / f"{PREFIX}{name}"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content() if data is None else data)
    if mtime is not None:
        os.utime(file, (mtime, mtime))
    return file


def take(spool: SpoolDirectory, **options: Any) -> TaskFileBatch:
    """Take the only batch and give it back; what it found can still be looked at."""
    (batch,) = spool.batches(**options)
    return batch


def drain(spool: SpoolDirectory, **options: Any) -> list[Task]:
    """Take all tasks and delete their files."""
    tasks: list[Task] = []
    for batch in spool.batches(**options):
        assert (batch.set_aside, batch.left) == ([], [])
        tasks += batch.tasks
        batch.remove()
    return tasks


def names(tasks: list[Task]) -> list[str]:
    return [decode_vars(task.variables)[b"to"].decode() for task in tasks]


# Taking out.


def test_a_task(spool: SpoolDirectory, path: Path) -> None:
    """A file holds the variables, up to its end the body, and in its time when it was written."""
    file = put(path, data=content(body=b"\x00body"), mtime=1_700_000_000.0)
    (batch,) = spool.batches()
    (task,) = batch.tasks
    assert (task.variables, task.body, task.at) == (VARIABLES, b"\x00body", 1_700_000_000.0)
    assert (task.priority, task.queue, task.attempts, task.id) == (UNPRIORITIZED, "", 0, 0)
    assert (batch.set_aside, batch.left, len(batch)) == ([], [], 1)
    assert file.exists()


def test_the_future(spool: SpoolDirectory, path: Path) -> None:
    """A file's time in the future is the task's, not what its variables say."""
    put(path, data=content(encode_vars({"at": "5"})), mtime=4_000_000_000.0)
    (task,) = take(spool).tasks
    assert task.at == 4_000_000_000.0
    assert task.created < task.at


def test_before_all_time(spool: SpoolDirectory, path: Path) -> None:
    """A time before 1970 is one that has come."""
    put(path, mtime=-5.0)
    assert take(spool).tasks[0].at == 0.0


def test_the_variables_that_uwsgi_has_acted_on(spool: SpoolDirectory, path: Path) -> None:
    """The spooler's directory is no queue, and where a file is says what its priority is."""
    variables = encode_vars({"spooler": str(path), "priority": "5"})
    put(path, data=content(variables))
    (task,) = take(spool).tasks
    assert (task.queue, task.priority, task.variables) == ("", UNPRIORITIZED, variables)


def test_priorities(spool: SpoolDirectory, path: Path) -> None:
    """Numbered subdirectories come first, by their number; others are left alone."""
    for folder in ("10", "9", "007", "9" * 20, "-1", "high", "1x"):
        put(path / folder, data=content(encode_vars({"to": folder})))
    put(path, data=content(encode_vars({"to": "last"})))
    (path / "4").symlink_to(path / "high")
    (path / "3").write_bytes(content())
    tasks = drain(spool)
    assert names(tasks) == ["007", "9", "10", "9" * 20, "last"]
    assert [task.priority for task in tasks] == [7, 9, 10, PRIORITY_LIMIT, UNPRIORITIZED]
    left = {str(file.relative_to(path)) for file in path.rglob("*") if not file.is_dir()}
    assert left == {f"-1/{PREFIX}a", f"high/{PREFIX}a", f"1x/{PREFIX}a", "3"}


@pytest.mark.parametrize("protocol", [0, 1, 2, 5])
def test_pickled_arguments_stay(spool: SpoolDirectory, path: Path, protocol: int) -> None:
    """A task whose arguments uWSGI's decorators have pickled stays where it is, unlocked; others are taken."""
    pickled = {"args": pickle.dumps((1, "x"), protocol), "kwargs": pickle.dumps({}, protocol)}
    file = put(path, data=content(encode_vars({"ud_spool_func": "add", **pickled})))
    put(
        path, "b", content(encode_vars({"ud_spool_func": "add", "args": dumps((1, "x.")), "kwargs": dumps({})}))
    )
    put(path, "c", content(encode_vars({"ud_spool_func": "plain", "args": "(hello"})))
    put(path, "d", content(encode_vars({"to": "ann", "args": pickle.dumps((), protocol)})))
    for batch in spool.batches():
        assert len(batch.tasks) == 3
        assert batch.left == [f"{file.name}: {taking.PICKLED}"]
        assert batch.set_aside == []
        batch.remove()
    assert list(path.iterdir()) == [file]


def test_other_files_are_left_alone(spool: SpoolDirectory, path: Path) -> None:
    """A file of another name is none of ours, also one that is being written."""
    for name in ("README", f".{PREFIX}a", "uwsgi_spoolfile"):
        (path / name).write_bytes(content())
    assert list(spool.batches()) == []
    assert len(list(path.iterdir())) == 3


def test_removed_when_told(spool: SpoolDirectory, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are deleted by ``remove`` only, and then the directory is synced."""
    order: list[str] = []
    unlink, fsync = os.unlink, os.fsync
    monkeypatch.setattr(os, "unlink", lambda *args, **keys: (order.append("unlink"), unlink(*args, **keys))[1])
    monkeypatch.setattr(os, "fsync", lambda descriptor: (order.append("fsync"), fsync(descriptor))[1])
    files = [put(path, "a"), put(path, "b")]
    assert len(take(spool)) == 2
    assert all(file.exists() for file in files)
    assert order == []
    drain(spool)
    assert not any(file.exists() for file in files)
    assert order == ["unlink", "unlink", "fsync"]


def test_batches(spool: SpoolDirectory, path: Path) -> None:
    """So many are taken at a time, each once, and all of them in the end."""
    for number in range(25):
        put(path, str(number), content(encode_vars({"to": number})))
    sizes = []
    found = []
    for batch in spool.batches(limit=10):
        sizes.append(len(batch))
        found += names(batch.tasks)
        batch.remove()
    assert sizes == [10, 10, 5]
    assert sorted(found, key=int) == [str(number) for number in range(25)]
    assert list(path.iterdir()) == []


def test_batches_without_deleting(spool: SpoolDirectory, path: Path) -> None:
    """What stays isn't taken twice in one pass, and its files are closed when the next ones are taken."""
    for number in range(BATCH_LIMIT * 3):
        put(path, str(number))
    before = len(os.listdir("/proc/self/fd"))
    opened = [(len(batch), len(os.listdir("/proc/self/fd")) - before) for batch in spool.batches()]
    assert [count for count, _ in opened] == [BATCH_LIMIT] * 3
    assert all(count <= BATCH_LIMIT + 5 for _, count in opened)
    assert len(os.listdir("/proc/self/fd")) == before


def test_large_batches(spool: SpoolDirectory, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch ends when it has many bytes, too."""
    monkeypatch.setattr(taking, "BATCH_SIZE", 250)
    for number in range(5):
        put(path, str(number), content(body=bytes(100)))
    assert [len(batch) for batch in spool.batches()] == [3, 2]


def test_keys(spool: SpoolDirectory, path: Path) -> None:
    """A file that comes twice has the same key; any other file has another one."""
    first = put(path, "a", mtime=1000.0)
    seen = {take(spool).tasks[0].key, take(spool).tasks[0].key}
    assert len(seen) == 1
    os.utime(first, (2000.0, 2000.0))
    seen.add(take(spool).tasks[0].key)
    first.write_bytes(content(body=b"x"))
    os.utime(first, (2000.0, 2000.0))
    seen.add(take(spool).tasks[0].key)
    first.rename(path / f"{PREFIX}b")
    seen.add(take(spool).tasks[0].key)
    (path / "1").mkdir()
    (path / f"{PREFIX}b").rename(path / "1" / f"{PREFIX}b")
    seen.add(take(spool).tasks[0].key)
    assert len(seen) == 5
    assert all(key.isascii() and len(key) <= KEY_LIMIT for key in seen)


def test_a_key_of_its_own(spool: SpoolDirectory, path: Path) -> None:
    """The idempotency key that a task brings stays."""
    put(path, data=content(encode_vars({"idempotency_key": "mine"})))
    assert take(spool).tasks[0].key == "mine"


def test_odd_names(spool: SpoolDirectory, path: Path) -> None:
    """A name of arbitrary bytes, as long as names get, is one like any other."""
    name = (PREFIX.encode() + b"\xff\n\xc3").ljust(255, b"x")
    with open(os.fsencode(path) + b"/" + name, "wb") as file:
        file.write(content())
    (task,) = drain(spool)
    assert task.key.isascii()
    assert list(path.iterdir()) == []


# What somebody else has.

_HOLD = """
import fcntl, sys
file = open(sys.argv[1], "r+b")
fcntl.lockf(file, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""


def test_locked(spool: SpoolDirectory, path: Path) -> None:
    """A file that another process has is left to it, and taken when it ends."""
    locked, free = put(path, "locked"), put(path, "free")
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(locked)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        (batch,) = spool.batches()
        assert (len(batch.tasks), batch.set_aside, batch.left) == (1, [], [])
        drain(spool)
        assert (locked.exists(), free.exists()) == (True, False)
        holder.communicate(timeout=20)
    assert len(drain(spool)) == 1


_IS_LOCKED = """
import fcntl, sys
try:
    fcntl.lockf(open(sys.argv[1], "r+b"), fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.exit(7)
"""


def is_locked(file: Path) -> bool:
    """Ask a process of its own, since a process is never kept out by its own locks."""
    return subprocess.run([sys.executable, "-c", _IS_LOCKED, str(file)], check=False).returncode == 7


def test_locks(spool: SpoolDirectory, path: Path) -> None:
    """Nobody else gets a file while its batch is worked on, and anybody afterwards."""
    file = put(path)
    with closing(spool.batches()) as batches:
        assert len(next(batches)) == 1
        assert is_locked(file)
    assert not is_locked(file)


def test_run_to_its_end_meanwhile(spool: SpoolDirectory, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was deleted, or replaced, before it was locked is not taken for the one that was there."""
    lockf = taking.fcntl.lockf
    for ending in (Path.unlink, lambda file: put(path, "new").rename(file)):
        file = put(path)

        def lock(descriptor: int, flags: int, ending: Any = ending, file: Path = file) -> None:
            ending(file)
            lockf(descriptor, flags)

        monkeypatch.setattr(taking.fcntl, "lockf", lock)
        assert list(spool.batches()) == []
    monkeypatch.setattr(taking.fcntl, "lockf", lockf)
    assert len(drain(spool)) == 1


def test_gone_after_it_was_stored(spool: SpoolDirectory, path: Path) -> None:
    """That somebody else deleted a file is no failure."""
    file = put(path)
    for batch in spool.batches():
        file.unlink()
        batch.remove()


# What is broken.


def _special(make: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda path: make(path / f"{PREFIX}a")


def _listen(file: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        directory = os.getcwd()
        os.chdir(file.parent)  # a socket's whole path has to be short
        try:
            listener.bind(file.name)
        finally:
            os.chdir(directory)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: put(path, data=content(modifier1=33)), "it begins with the modifier1 33; a task's is 17"),
        (lambda path: put(path, data=b"junk" * 20), "it begins with the modifier1 106; a task's is 17"),
        (lambda path: put(path, data=b""), "it ends after 0 bytes, within its variables"),
        (lambda path: put(path, data=b"\x11\x05"), "it ends after 2 bytes, within its variables"),
        (lambda path: put(path, data=content()[:-1]), "it ends after 12 bytes, within its variables"),
        (lambda path: put(path, data=content(b"\xff\xff")), "an item announces 65535 bytes where 0 are left"),
        (lambda path: put(path, data=content(b"\x01\x00a")), "the last key of the vars block has no value"),
        (lambda path: put(path, data=content(b"\x00\x00\x01\x00a")), "a key of length 0"),
        (lambda path: put(path, data=content(encode_vars({"at": "soon"}))), "at='soon' is no time"),
        (lambda path: put(path, data=content(body=bytes(1000))), "it has 1013 bytes; 1000 is the most"),
        (lambda path: os.truncate(put(path), 1 << 40), "it has 1099511627776 bytes; 1000 is the most"),
        (_special(lambda file: file.symlink_to("/etc/passwd")), "it is a symbolic link, not a file"),
        (_special(lambda file: file.symlink_to("nowhere")), "it is a symbolic link, not a file"),
        (_special(Path.mkdir), "it is a directory, not a file"),
        (_special(os.mkfifo), "it is a named pipe, not a file"),
        (_special(_listen), "it is a socket, not a file"),
    ],
)
@pytest.mark.parametrize("folder", ["", "5"])
def test_broken(path: Path, make: Callable[[Path], object], reason: str, folder: str) -> None:
    """A broken file is moved, as it is, beside a file with the reason, and holds up no other one."""
    spool = SpoolDirectory(str(path), max_size=1000, now=lambda: time.time() + 2 * GRACE)
    place = path / folder
    place.mkdir(exist_ok=True)
    make(place)
    (file,) = place.iterdir()
    before = os.lstat(file)
    put(place, "good")
    batches = list(spool.batches())
    (batch,) = batches
    assert len(batch.tasks) == 1
    (text,) = batch.set_aside
    assert text.startswith(f"{file.relative_to(path)}: {reason}")
    moved = path / BROKEN / file.name
    assert os.path.samestat(os.lstat(moved), before)
    assert not os.path.lexists(file)
    assert (path / BROKEN / f"{file.name}.reason").read_text().startswith(reason)
    assert drain(spool)
    assert len(list((path / BROKEN).iterdir())) == 2


def test_a_time_that_is_none(spool: SpoolDirectory, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A modification time that a store can't hold makes a file a broken one."""
    put(path)
    monkeypatch.setattr(taking, "LATEST", 1000.0)
    (text,) = take(spool).set_aside
    assert "its modification time is after the year 9999" in text
    assert LATEST > 1000.0


def test_broken_twice(spool: SpoolDirectory, path: Path) -> None:
    """A second broken file of the same name takes nothing from the first."""
    for number in range(3):
        put(path, data=str(number).encode())
        assert len(take(spool).set_aside) == 1
    found = {file.name: file.read_bytes() for file in (path / BROKEN).iterdir() if file.suffix != ".reason"}
    assert found == {f"{PREFIX}a": b"0", f"{PREFIX}a.1": b"1", f"{PREFIX}a.2": b"2"}
    assert len(list((path / BROKEN).iterdir())) == 6


def test_young_files(path: Path) -> None:
    """What looks broken, but was changed just now, may still be written: it stays where it is."""
    file = put(path, data=b"", mtime=1000.0)
    spool = SpoolDirectory(str(path))
    (batch,) = spool.batches()
    assert batch.left == [
        f"{file.name}: it ends after 0 bytes, within its variables; perhaps somebody still writes it"
    ]
    assert (batch.set_aside, file.exists()) == ([], True)
    file.write_bytes(content())
    assert len(drain(spool)) == 1


def test_broken_files_that_cannot_be_set_aside(
    spool: SpoolDirectory, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no room for the reason, a broken file stays, and nothing else is left behind."""
    file = put(path, data=b"?")

    def full(*args: object, **keywords: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    for _ in range(2):
        (batch,) = spool.batches()
        (text,) = batch.left
        assert text.endswith("; it can't be set aside: No space left on device")
        batch.remove()
    assert file.exists()
    assert list((path / BROKEN).iterdir()) == []


def test_a_link_in_place_of_the_broken(spool: SpoolDirectory, path: Path, tmp_path: Path) -> None:
    """Nothing is moved out of the directory over a symbolic link."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (path / BROKEN).symlink_to(elsewhere)
    file = put(path, data=b"?")
    assert "it can't be set aside" in take(spool).left[0]
    assert file.exists()
    assert list(elsewhere.iterdir()) == []


def test_files_that_cannot_be_opened(
    spool: SpoolDirectory, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that may not be read is reported, and the others are taken."""
    put(path, "theirs")
    put(path, "ours")
    real_open = os.open

    def guarded(name: Any, *args: Any, **keywords: Any) -> int:
        if str(name).endswith("theirs"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real_open(name, *args, **keywords)

    monkeypatch.setattr(os, "open", guarded)
    batch = take(spool)
    assert batch.left == [f"{PREFIX}theirs: Permission denied"]
    assert len(batch.tasks) == 1


def test_folders_that_cannot_be_opened(
    spool: SpoolDirectory, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A subdirectory that may not be read is reported, and what is beside it is taken."""
    put(path / "5")
    put(path)
    real_open = os.open

    def guarded(name: Any, *args: Any, **keywords: Any) -> int:
        if name == "5":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real_open(name, *args, **keywords)

    monkeypatch.setattr(os, "open", guarded)
    first, second = spool.batches()
    assert first.left == ["5/: Permission denied"]
    first.remove()
    assert len(second.tasks) == 1


def test_files_that_cannot_be_deleted(
    spool: SpoolDirectory, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is stored and can't be deleted is an error that says so; the rest is deleted."""
    stays, goes = put(path, "stays"), put(path, "goes")
    unlink = os.unlink

    def guarded(name: str, **keywords: Any) -> None:
        if name == stays.name:
            raise PermissionError(errno.EACCES, "Permission denied")
        unlink(name, **keywords)

    monkeypatch.setattr(os, "unlink", guarded)
    with pytest.raises(
        StoreUnavailable, match=r"the tasks of 1 spool files are stored.*stays: Permission denied"
    ):
        drain(spool)
    assert (stays.exists(), goes.exists()) == (True, False)


@pytest.mark.parametrize("what", ["nothing", "a file"])
def test_no_directory(tmp_path: Path, what: str) -> None:
    """A path that is no directory is an error that names it, whatever is asked for."""
    path = tmp_path / "spool"
    if what == "a file":
        path.write_bytes(b"")
    spool = SpoolDirectory(str(path))
    for use in (spool.check, lambda: list(spool.batches()), lambda: spool.write(new_task(b"", 1.0))):
        with pytest.raises(StoreUnavailable, match=re.escape(f"the spool directory {path} can't be ")):
            use()


def test_check(spool: SpoolDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that this user can't write is an error that says whom it takes."""
    spool.check()
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    with pytest.raises(SpoolError, match=f"by the user {os.getuid()}; run this as the user of its uWSGI"):
        spool.check()


# Putting in.


def test_write(spool: SpoolDirectory, path: Path) -> None:
    """A task becomes a file as uWSGI writes them, of a name as it makes them, and nothing else is there."""
    name = spool.write(new_task(VARIABLES, 1000.0, b"\x00body"))
    (file,) = path.iterdir()
    assert file.name == name
    host = re.escape(socket.gethostname())
    assert re.fullmatch(rf"uwsgi_spoolfile_on_{host}_{os.getpid()}_1_[0-9]+_[0-9]+_[0-9]{{1,6}}", name)
    assert file.read_bytes() == content(body=b"\x00body")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert abs(file.stat().st_mtime - time.time()) < 60


@pytest.mark.parametrize(
    ("priority", "ordered", "folder"),
    [
        (UNPRIORITIZED, True, ""),
        (0, True, "0/"),
        (12, True, "12/"),
        (PRIORITY_LIMIT, True, f"{PRIORITY_LIMIT}/"),
        (-3, True, "0/"),
        (12, False, ""),
    ],
)
def test_write_priority(path: Path, priority: int, ordered: bool, folder: str) -> None:
    """A priority is a numbered subdirectory, for a uWSGI that looks into those."""
    spool = SpoolDirectory(str(path), ordered=ordered)
    task = replace(new_task(VARIABLES, 1000.0), priority=priority)
    for _ in range(2):
        name = spool.write(task)
        assert name.startswith(f"{folder}{PREFIX}")
        assert (path / name).is_file()


def test_write_for_the_future(spool: SpoolDirectory, path: Path) -> None:
    """A time to come is the file's, up to the next whole second, since uWSGI has no others."""
    task = new_task(encode_vars({"at": "4000000000.25"}), 1000.0)
    assert (path / spool.write(task)).stat().st_mtime == 4_000_000_001.0


def test_write_and_take(spool: SpoolDirectory, path: Path) -> None:
    """What is written is taken out as it was, but for what a file can't hold."""
    variables = encode_vars({"at": "4000000000", "priority": "7", "idempotency_key": "k"})
    written = new_task(variables, 1000.0, b"body")
    spool.write(written)
    (taken,) = drain(spool)
    assert taken == replace(written, created=taken.created)


def test_write_is_durable(spool: SpoolDirectory, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is on the disk, with its time, before it has its name, and its name before it counts."""
    order: list[str] = []

    def watched(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*args: Any, **keywords: Any) -> Any:
            order.append(name)
            if name == "rename":
                assert not str(args[0]).startswith(PREFIX), "uWSGI would run what isn't finished"
            return real(*args, **keywords)

        return call

    for name in ("mkdir", "utime", "fsync", "rename"):
        monkeypatch.setattr(os, name, watched(name))
    spool.write(new_task(encode_vars({"at": "4000000000", "priority": "7"}), 1000.0))
    assert order == ["mkdir", "fsync", "utime", "fsync", "rename", "fsync"]


@pytest.mark.parametrize("failing", ["utime", "fsync", "rename"])
def test_write_fails(spool: SpoolDirectory, path: Path, failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a task that can't be written, nothing stays."""

    def full(*args: object, **keywords: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(StoreUnavailable, match=f"{path} can't be written: No space left on device"):
        spool.write(new_task(encode_vars({"at": "4000000000"}), 1000.0))
    assert list(path.iterdir()) == []


def test_write_over_a_link(spool: SpoolDirectory, path: Path, tmp_path: Path) -> None:
    """Nothing is written out of the directory over a symbolic link."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (path / "7").symlink_to(elsewhere)
    with pytest.raises(StoreUnavailable):
        spool.write(new_task(encode_vars({"priority": "7"}), 1000.0))
    assert list(elsewhere.iterdir()) == []
