"""Moves the tasks of a real uWSGI's spool directory into a spooler, as long as the spooler runs."""

from __future__ import annotations

from collections.abc import Callable, Generator

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorFromThreads, IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from uwsgitwisted.errors import UwsgiError
from uwsgitwisted.spool.store_thread import Runner, StoreThread
from uwsgitwisted.spool.task import Task
from uwsgitwisted.spool.uwsgi.directory import SpoolDirectory
from uwsgitwisted.spool.uwsgi.taking import TaskFileBatch

_log = Logger()


class DirectoryDrain:
    """Looks into a spool directory again and again, and has the tasks stored that it finds there.

    :param reactor: keeps the time.
    :param store_tasks: stores tasks, all of them or none; its Deferred fires when that is on the disk.
    :param interval: seconds between two looks, also after a failure.
    :param runner: reads and deletes the files; it is started and stopped here. None for a thread of its own.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        directory: SpoolDirectory,
        store_tasks: Callable[[list[Task]], Deferred[list[int]]],
        interval: float = 1.0,
        *,
        runner: Runner | None = None,
    ) -> None:
        self._directory = directory
        self._store_tasks = store_tasks
        self._interval = interval
        self._runner: Runner = runner or StoreThread(IReactorFromThreads(reactor))
        self._looping = LoopingCall(lambda: Deferred.fromCoroutine(self._look_once()))
        self._looping.clock = reactor
        self._ended: Deferred[LoopingCall] | None = None
        # Whether a failure, and files that stay, were logged already.
        self._failing = False
        self._leaving = False

    def start(self) -> None:
        """Begin to look."""
        self._runner.start()
        self._ended = self._looping.start(self._interval)

    def stop(self) -> Deferred[None]:
        """Take no further batch.

        :return: fires when the present batch is stored and its files are deleted, or its locks are released. It
            doesn't fail.
        """
        ended, self._ended = self._ended, None
        if ended is None:
            return succeed(None)
        self._looping.stop()
        return ended.addCallback(lambda _: self._runner.stop())

    async def _look_once(self) -> None:
        """Go through the directory once. It doesn't fail."""
        try:
            left = await self._move_tasks(self._directory.batches())
        except Exception as error:
            self._log_failure(error)
            return
        if self._failing:
            self._failing = False
            _log.info("the spool directory {path} is drained again", path=self._directory.path)
        if left and not self._leaving:
            _log.warn("files stay in {path}, such as {left}", path=self._directory.path, left=left[0])
        self._leaving = bool(left)

    async def _move_tasks(self, batches: Generator[TaskFileBatch, None, None]) -> list[str]:
        """Move one batch after the other; return some of what could not be taken."""
        left: list[str] = []
        try:
            while self._looping.running:
                batch = await self._runner.run(_next_batch, batches)
                if batch is None:
                    break
                left = left or batch.left
                for text in batch.set_aside:
                    _log.error("set aside in {path}: {text}", path=self._directory.path, text=text)
                if batch.tasks:
                    await self._store_tasks(batch.tasks)
                    await self._runner.run(batch.remove)
        finally:
            await self._runner.run(batches.close)
        return left

    def _log_failure(self, error: Exception) -> None:
        if self._failing:
            return
        self._failing = True
        path = self._directory.path
        if isinstance(error, UwsgiError):
            _log.error("{path} can't be drained at present: {error}", path=path, error=str(error))
        else:
            _log.failure("draining {path}", path=path)


def _next_batch(batches: Generator[TaskFileBatch, None, None]) -> TaskFileBatch | None:
    return next(batches, None)
