"""What each error says about the request that failed, and about the node: one table.

Any other error is an answer. The request ran, or would fail anywhere, and the node works.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from uwsgitwisted.errors import (
    Busy,
    ConnectionBroken,
    ConnectionFailed,
    Interrupted,
    NoAnswer,
    RequestTimeout,
    Unavailable,
    WorkerDied,
)

#: How many nodes may fail a call, or a piece of a map, before it has failed for good.
MAX_FAILURES = 3


class Retry(enum.Enum):
    """When a request that failed may be tried again elsewhere."""

    #: It was not started.
    ALWAYS = "always"
    #: It may have run, wholly or in part.
    IDEMPOTENT = "only if idempotent"
    #: It would fail again.
    NEVER = "never"


class Node(enum.Enum):
    """What a failed request says about its node."""

    #: It answers.
    WELL = "well"
    #: It has as many requests as it takes.
    FULL = "full"
    #: It may be down, or hang, or just have been too slow, or its handler has raised.
    DOUBTFUL = "doubtful"
    #: It is down, or stopping.
    FAILED = "failed"


class Rule(NamedTuple):
    """What follows from an error.

    :param retry: when the request may be tried again.
    :param node: what is known about the node.
    """

    retry: Retry
    node: Node


_ANSWER = Rule(Retry.NEVER, Node.WELL)
#: The rules by the errors' classes. A class that isn't here has the rule of its nearest base that is.
RULES: dict[type[BaseException], Rule] = {
    BaseException: _ANSWER,
    ConnectionFailed: Rule(Retry.ALWAYS, Node.FAILED),
    ConnectionBroken: Rule(Retry.IDEMPOTENT, Node.DOUBTFUL),
    NoAnswer: Rule(Retry.IDEMPOTENT, Node.DOUBTFUL),
    Unavailable: Rule(Retry.ALWAYS, Node.FAILED),
    Busy: Rule(Retry.ALWAYS, Node.FULL),
    RequestTimeout: Rule(Retry.IDEMPOTENT, Node.DOUBTFUL),
    Interrupted: Rule(Retry.IDEMPOTENT, Node.FAILED),
    WorkerDied: Rule(Retry.IDEMPOTENT, Node.WELL),
}


def rule_of(error: BaseException) -> Rule:
    """Return what follows from *error*."""
    return next(RULES[cls] for cls in type(error).__mro__ if cls in RULES)


def may_retry(error: BaseException, *, idempotent: bool) -> bool:
    """Whether a request that failed with *error* may be tried on another node.

    :param idempotent: whether the request may run twice.
    """
    retry = rule_of(error).retry
    return retry is Retry.ALWAYS or (idempotent and retry is Retry.IDEMPOTENT)
