"""The options of what a node's processes share."""

from __future__ import annotations

import pytest
from twisted.python.usage import UsageError

from uwsgitwisted.shared.cache import CacheLimits
from uwsgitwisted.taps.node import Options, parse_cache
from uwsgitwisted.taps.spooler import Options as SpoolerOptions

_HANDLER = ("--handler", "my_server")


def parse(*line: str) -> Options:
    """Return the options of a line."""
    options = Options()
    options.parseOptions([*_HANDLER, *line])
    return options


@pytest.mark.parametrize(
    ("text", "name", "limits"),
    [
        ("500", b"default", CacheLimits(items=500)),
        ("size=1M", b"default", CacheLimits(size=1024 * 1024)),
        ("name=a,items=2,size=3K,purge_lru=1", b"a", CacheLimits(2, 3 * 1024, True)),
        ("name=a,purge_lru=0", b"a", CacheLimits()),
    ],
)
def test_caches(text: str, name: bytes, limits: CacheLimits) -> None:
    """A cache is described by its number of items, or by keys and values as in uWSGI."""
    assert parse_cache(text) == (name, limits)
    assert parse("--cache", text)["cache"] == {name: limits}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (("--cache", "blocksize=5"), "a cache has no 'blocksize'; write name=NAME,items=N"),
        (("--cache", "items=0"), "--cache items=0: not a whole number from 1"),
        (("--queue", "2000000"), "--queue 2000000: 1000000 is the most"),
        (("--mules", "300"), "--mules 300: 256 is the most"),
        (("--mules", "256", "--mule", "a"), "--mule: there may be 256 mules"),
        (("--mules", "1", "--engine", "threads:2"), "mules need --engine processes:N"),
        (("--signals-from", "10.0.0.0/33"), "--signals-from 10.0.0.0/33: "),
        (("--signals-from", "::1", "--engine", "reactor"), "signals need --engine processes:N"),
    ],
)
def test_mistakes(line: tuple[str, ...], told: str) -> None:
    """What can't be is refused, with the option's name."""
    with pytest.raises(UsageError) as caught:
        parse(*line)
    assert told in str(caught.value)


def test_without_a_handler() -> None:
    """Mules and signals need the handler module."""
    with pytest.raises(UsageError, match="mules load the handler module, so give --handler too"):
        Options().parseOptions(["--resource", "a.B", "--mule", "c"])
    with pytest.raises(UsageError, match="the handler module has signals, so give --handler too"):
        Options().parseOptions(["--resource", "a.B", "--signals-from", "::1"])


def test_signals() -> None:
    """The networks whose peers may raise signals are none, or those that were given."""
    assert parse()["signals-from"] == []
    given = ("--signals-from", "10.0.0.0/8", "--signals-from", "::1")
    spooler = SpoolerOptions()
    spooler.parseOptions([*_HANDLER, "--spool", "sqlite:spool.sqlite", *given])
    for options in (parse(*given), spooler):
        assert list(map(str, options["signals-from"])) == ["10.0.0.0/8", "::1/128"]


def test_mules() -> None:
    """Mules and their programs are counted and kept in their order."""
    options = parse("--mules", "2", "--mule", "a:b", "--mule", "c.py")
    assert (options["mules"], options["mule"]) == (2, ["a:b", "c.py"])
