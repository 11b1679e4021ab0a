"""Drives conversations that begin and end at any time, with one selector."""

from __future__ import annotations

import math
import selectors
import time
from collections.abc import Callable
from typing import Any

from uwsgitwisted.blocking.sockets import LONGEST_WAIT, Steps, Wait, describe
from uwsgitwisted.errors import ConnectionFailed, UwsgiError


class Task:
    """A conversation in a loop."""

    __slots__ = ("done", "steps", "wait")

    def __init__(self, steps: Steps[Any], done: Callable[[Any], None]) -> None:
        self.steps = steps
        self.done = done
        self.wait = Wait(None, 0, -math.inf)


class Loop:
    """A selector, and the conversations that it drives.

    :raises ConnectionFailed: if the process has no file descriptor left.
    """

    def __init__(self) -> None:
        try:
            self._selector = selectors.DefaultSelector()
        except OSError as error:
            raise ConnectionFailed(describe(error)) from error
        self._tasks: dict[Task, None] = {}

    def start(self, steps: Steps[Any], done: Callable[[Any], None]) -> Task:
        """Begin a conversation.

        :param done: called with its value, or with the :class:`UwsgiError` that it raised.
        """
        task = Task(steps, done)
        self._tasks[task] = None
        self._advance(task, None)
        return task

    def stop(self, task: Task) -> None:
        """End a conversation, whose sockets are closed; ``done`` isn't called."""
        if task in self._tasks:
            self._forget(task)
            task.steps.close()

    def change_wait(self, task: Task, wait: Wait) -> None:
        """Have a conversation wait for something else."""
        if task in self._tasks:
            self._wait(task, wait)

    def close(self) -> None:
        """End all conversations."""
        for task in list(self._tasks):
            self.stop(task)
        self._selector.close()

    def turn(self, until: float) -> None:
        """Go on with what happens next; wait for it until a time of the monotonic clock at the latest."""
        first = min((task.wait.until for task in self._tasks), default=math.inf)
        left = min(first, until) - time.monotonic()
        ready = [key.data for key, _ in self._selector.select(min(max(left, 0.0), LONGEST_WAIT))]
        for task in ready:
            if task in self._tasks:
                self._advance(task, True)
        now = time.monotonic()
        if first <= now:
            late = [task for task in self._tasks if task.wait.until <= now]
            for task in late:
                if task in self._tasks:
                    self._advance(task, False)

    def _advance(self, task: Task, value: bool | None) -> None:
        """Run a conversation until it waits or ends."""
        try:
            wait = next(task.steps) if value is None else task.steps.send(value)
        except StopIteration as end:
            self._forget(task)
            task.done(end.value)
        except UwsgiError as error:
            self._forget(task)
            task.done(error)
        except BaseException:
            self._forget(task)
            raise
        else:
            self._wait(task, wait)

    def _wait(self, task: Task, wait: Wait) -> None:
        """Register what *task* waits for; most often it is what it has waited for before."""
        before = task.wait
        task.wait = wait
        if before.sock is wait.sock:
            if wait.sock is not None and before.events != wait.events:
                self._selector.modify(wait.sock, wait.events, task)
            return
        if before.sock is not None:
            self._selector.unregister(before.sock)
        if wait.sock is not None:
            self._selector.register(wait.sock, wait.events, task)

    def _forget(self, task: Task) -> None:
        self._tasks.pop(task, None)
        if task.wait.sock is not None:
            self._selector.unregister(task.wait.sock)
            task.wait = Wait(None, 0, -math.inf)
