"""The table of uWSGI's names: complete, and true of the modules and of the document."""

from __future__ import annotations

import logging
from types import ModuleType

import pytest

from tests.uwsgi_names import DOCUMENT, HEADING, distribution_file, listing, stub_names
from uwsgitwisted.errors import MisuseError, NotProvided
from uwsgitwisted.worker.compat import uwsgi, uwsgidecorators
from uwsgitwisted.worker.compat.table import DECORATORS, UWSGI, Name, Support, flatten

#: Names that uWSGI's stubs don't have: of older versions, of the newest code, and what handler modules assign.
_BESIDES_STUBS = {
    "add_ms_timer",
    "install_mule_msg_hook",
    "message_manager_marshal",
    "mule_msg_hook",
    "mule_msg_recv_size",
    "send_message",
    "send_multi_uwsgi_message",
    "send_uwsgi_message",
    "spooler_dir",
}
_TABLES = [(uwsgi, flatten(UWSGI)), (uwsgidecorators, flatten(DECORATORS))]
_ALL = [
    pytest.param(module, name, entry, id=f"{module.__name__.rpartition('.')[2]}.{name}")
    for module, names in _TABLES
    for name, entry in names.items()
]


def test_every_name_of_the_stubs() -> None:
    """The table has every name of uWSGI's stubs, and no other but those that are given here."""
    stubs = stub_names(distribution_file("types-uwsgi", "uwsgi-stubs/__init__.pyi"))
    assert len(stubs) > 150
    assert set(flatten(UWSGI)) == stubs | _BESIDES_STUBS


def test_every_name_of_uwsgidecorators() -> None:
    """The table has every name of PyPI's uwsgidecorators and of its stubs, and mstimer, which is newer."""
    published = stub_names(distribution_file("uwsgidecorators", "uwsgidecorators.py"))
    stubs = stub_names(distribution_file("types-uwsgi", "uwsgidecorators-stubs/__init__.pyi"))
    assert len(published) > 25
    assert set(flatten(DECORATORS)) == published | stubs | {"mstimer", "uwsgi"}


def test_the_document() -> None:
    """The document has the table; ``python -m tests.uwsgi_names`` writes it."""
    assert DOCUMENT.read_text(encoding="utf-8").partition(HEADING)[2] == listing()


@pytest.mark.parametrize(("module", "name", "entry"), _ALL)
def test_each_name(module: ModuleType, name: str, entry: Name) -> None:
    """A name that works is there; one that is refused can be imported, and its call raises."""
    assert name in module.__all__
    found = getattr(module, name)
    if entry.support is not Support.REFUSED:
        assert not isinstance(found, ModuleType) or name in ("uwsgi", "decorators")
        assert getattr(found, "__name__", "") != "refuse"
        assert (entry.support is Support.WORKS) or entry.note
        return
    assert entry.note
    called = found(lambda: None) if entry.is_decorator else found
    with pytest.raises(NotProvided) as caught:
        called()
    assert caught.value.name.endswith(f".{name}")
    assert str(caught.value).endswith(entry.note)
    assert isinstance(caught.value, MisuseError)


@pytest.mark.parametrize("module", [uwsgi, uwsgidecorators])
def test_import_all(module: ModuleType) -> None:
    """``from uwsgi import *`` gives the names of the table, and no others."""
    given: dict[str, object] = {}
    exec(f"from {module.__name__} import *", given)
    assert given.keys() - {"__builtins__"} == set(module.__all__)


def test_a_refused_decorator(caplog: pytest.LogCaptureFixture) -> None:
    """Its function can be defined and keeps its name; only its call fails, and the log says so at once."""

    @uwsgidecorators.farm("pool")
    def work(message: bytes) -> None:
        """Work."""

    assert (work.__name__, work.__doc__) == ("work", "Work.")
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("uwsgitwisted.uwsgi", logging.WARNING)
    assert "no @uwsgidecorators.farm, so test_a_refused_decorator.<locals>.work is not used" in caplog.text
    with pytest.raises(NotProvided, match=r"has no uwsgidecorators\.farm; send work with uwsgi\.spool"):
        work(b"")


def test_names_that_uwsgi_has_not() -> None:
    """Another name is no attribute, and the error suggests one that is similar."""
    with pytest.raises(AttributeError, match=r"there is no uwsgi\.sendmessage; did you mean send_message\?"):
        _ = uwsgi.sendmessage
    assert not hasattr(uwsgi, "brand_new")
    assert not hasattr(uwsgidecorators, "brand_new")
