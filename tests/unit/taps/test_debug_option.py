"""The renderer's option ``--debug``, which strangers must not profit from."""

from __future__ import annotations

import pytest
from twisted.python.usage import UsageError

from uwsgitwisted.taps.renderer import Options


def parse(*listen: str, more: tuple[str, ...] = ()) -> Options:
    """Parse a command line with ``--debug``."""
    options = Options()
    endpoints = [part for each in listen for part in ("--listen", each)]
    options.parseOptions(["--templates", "/tmp", "--debug", *endpoints, *more])
    return options


@pytest.mark.parametrize(
    "listen",
    [
        (),
        ("tcp:3033",),
        ("tcp:3033:interface=127.0.0.2", "unix:/run/a/b"),
        (r"tcp6:3033:interface=\:\:1",),
    ],
)
def test_loopback(listen: tuple[str, ...]) -> None:
    """It is allowed where only this machine can connect."""
    assert parse(*listen)["debug"]


def test_without_effect() -> None:
    """It is refused with an engine that answers no web requests."""
    for engine in ("threads:2", "reactor"):
        with pytest.raises(UsageError, match=f"--engine {engine} answers no web requests"):
            parse(more=("--engine", engine))
    assert parse(more=("--engine", "processes:2"))["debug"]


@pytest.mark.parametrize(
    ("listen", "more"),
    [
        (("tcp:3033:interface=10.0.0.5",), ()),
        (("tcp:3033", "tcp:3034:interface=0.0.0.0"), ()),
        (("tcp:3033:interface=localhost.example.com",), ()),
        (("tcp:3033",), ("--allow", "127.0.0.0/8")),
        (("systemd:domain=INET:index=0",), ()),
    ],
)
def test_elsewhere(listen: tuple[str, ...], more: tuple[str, ...]) -> None:
    """It is refused where others can, or where that can't be known."""
    with pytest.raises(UsageError, match="--debug shows the code"):
        parse(*listen, more=more)
