"""What handler modules get from ``import uwsgidecorators``: the names that :mod:`.table` has."""

from typing import Any as _Any

from uwsgitwisted.worker.compat import uwsgi
from uwsgitwisted.worker.compat.names import find as _find
from uwsgitwisted.worker.compat.table import DECORATORS as _DECORATORS
from uwsgitwisted.worker.compat.table import flatten as _flatten

_NAMES = _flatten(_DECORATORS)

__all__ = ["uwsgi", *(_name for _name in _NAMES if _name != "uwsgi")]


def __getattr__(name: str) -> _Any:
    return _find(__name__, _NAMES, name)
