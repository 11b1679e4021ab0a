"""Files below a directory: which are opened, and what HTTP says about them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from uwsgitwisted.files import (
    LEADS_OUT,
    Part,
    content_type,
    open_below,
    open_without_links,
    parse_range,
    why_refused,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory with files and links, and a secret beside it."""
    (tmp_path / "secret").write_text("secret")
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "deep").write_text("deep")
    (root / "inside").symlink_to("sub/deep")
    (root / "into").symlink_to("sub")
    (root / "outside").symlink_to("../secret")
    (root / "up").symlink_to("..")
    (root / "loop").symlink_to("loop")
    return root


def read(descriptor: int) -> str:
    with open(descriptor) as file:
        return file.read()


@pytest.mark.parametrize(
    "name", ["", "/a", "//a", "a//b", "a/", "a/../b", "..", "./a", ".", "a\\b", "a\0", "a\nb", "\udcff", "\x85"]
)
def test_refused_names(name: str) -> None:
    """A name that isn't plain is refused, with a reason."""
    assert why_refused(name)


@pytest.mark.parametrize("name", ["a", "a/b.txt", "...", "a..b", ".a", "ü/日本", "a b"])
def test_names(name: str) -> None:
    """Any other name is not."""
    assert why_refused(name) is None


@pytest.mark.parametrize("name", ["sub/deep", "inside", "into/deep"])
def test_inside(root: Path, name: str) -> None:
    """Links that stay inside are followed."""
    assert read(open_below(str(root), name)) == "deep"


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("outside", LEADS_OUT),
        ("up/secret", LEADS_OUT),
        ("up/root/up/secret", LEADS_OUT),
        ("absent", errno.ENOENT),
        ("sub/deep/x", errno.ENOTDIR),
        ("loop", errno.ELOOP),
        ("sub/deep" + "/x" * 30_000, errno.ENAMETOOLONG),
    ],
)
def test_what_is_not_opened(root: Path, name: str, number: int) -> None:
    """Nothing outside is opened, and each error says what it is."""
    with pytest.raises(OSError, match=r".") as caught:
        open_below(str(root), name)
    assert caught.value.errno == number


@pytest.mark.parametrize("name", ["inside", "into/deep", "outside", "up/secret"])
def test_without_links(root: Path, name: str) -> None:
    """No link is followed where none may be, except that of the directory itself."""
    (root.parent / "link").symlink_to("root")
    assert read(open_without_links(str(root.parent / "link"), "sub/deep")) == "deep"
    before = len(os.listdir("/dev/fd"))
    with pytest.raises(OSError, match=r"."):
        open_without_links(str(root), name)
    assert len(os.listdir("/dev/fd")) <= before


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("page.html", "text/html; charset=utf-8"),
        ("a/style.CSS", "text/css; charset=utf-8"),
        ("picture.png", "image/png"),
        ("data.json", "application/json"),
        ("archive.tar.gz", "application/octet-stream"),
        ("page.html.gz", "application/octet-stream"),
        ("odd.zzz", "application/octet-stream"),
        ("data:text/html,x", "application/octet-stream"),
    ],
)
def test_types(name: str, kind: str) -> None:
    """A file's type is that of its name; text is UTF-8, and what is compressed is bytes."""
    assert content_type(name) == kind


def test_the_type_of_scripts() -> None:
    """A script is text, whatever it is called here."""
    assert content_type("code.js").endswith("/javascript; charset=utf-8")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (b"", None),
        (b"bytes=-", None),
        (b"bytes=1-" + b"9" * 30, None),
        (b"bytes=5-3", None),
        (b"bytes=1-2,4-5", None),
        (b"lines=1-2", None),
        (b"bytes=0-0", Part(0, 1)),
        (b"Bytes=2-", Part(2, 8)),
        (b"bytes=8-100", Part(8, 2)),
        (b"bytes=-3", Part(7, 3)),
        (b"bytes=-30", Part(0, 10)),
    ],
)
def test_ranges(text: bytes, part: Part | None) -> None:
    """A range is what lies in the file; what is none stands for the whole."""
    assert parse_range(text, 10) == part


@pytest.mark.parametrize("text", [b"bytes=10-", b"bytes=10-10", b"bytes=-0"])
def test_ranges_outside(text: bytes) -> None:
    """A range without a byte of the file is an error."""
    with pytest.raises(ValueError, match="10 bytes"):
        parse_range(text, 10)
