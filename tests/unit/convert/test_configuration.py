"""Reading uWSGI's configurations. tests/integration/test_moving.py compares the result with a real uWSGI's."""

from __future__ import annotations

from pathlib import Path

import pytest

from uwsgitwisted.convert.configuration import MAX_FILE, MAX_FILES, read_configuration
from uwsgitwisted.errors import ConfigurationError


def read(directory: Path, name: str = "app.ini") -> dict[str, str]:
    """Return the values of all options, the last one of each."""
    return {setting.key: setting.value for setting in read_configuration(name, str(directory))}


def refused(directory: Path, text: str, name: str = "app.ini") -> str:
    """Return the text of the error that a configuration causes."""
    (directory / name).write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        read_configuration(name, str(directory))
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("[uwsgi]\n\nini = no.ini", "app.ini:3: "),
        ("[uwsgi]\nini = app.ini", "app.ini:2: app.ini: files that include each other"),
        ("[uwsgi]\nset = x", "app.ini:2: set = x: write set = name=value"),
        ("[uwsgi]\ninclude = http://example.com/x.ini", "only files are read"),
        ("[uwsgi]\ninclude = /dev/zero.ini", "app.ini:2: "),
        ("[uwsgi]\ninclude = x.conf", "uWSGI reads names that end with .ini"),
        ("[uwsgi]\na = b%\nc = d", "app.ini:2: uWSGI joins a line that ends with %"),
        ("[uwsgi]\na = x%(b)\nb = y%(a)", "app.ini:2: %(...) leads to itself"),
        ("[uwsgi]\na = %(a a)x%(a a)", "app.ini:2: %(...) leads to itself, or to more than 65536"),
        ("[uwsgi]\nx = 1\na = @(none)", "app.ini:3: "),
        ("[uwsgi]\na = @(exec://date)", "app.ini:2: @(exec://date): only files are read"),
        ("[uwsgi]\nfor = a\nif-env = HOME\n", "app.ini:3: if-env within for: uWSGI has no blocks within"),
        ("[uwsgi]\nif-plugin = x\na = b\n", "app.ini:3: if-plugin can't be answered here"),
        ("[uwsgi]\nfor-readline = none\na = b\n", "app.ini:3: for-readline = none: No such file"),
        ("[uwsgi]\nfor-readline = .\na = b\n", "app.ini:3: for-readline = .: it is not a file"),
        ("[uwsgi]\nfor-readline = long\na = b\n", "app.ini:3: for-readline = long: it has more than 1048576"),
        ("[uwsgi]\nfor-readline = lines\na = b\n", "app.ini:3: for-readline = lines: it runs more than 1000"),
        ("[uwsgi]\nfor-times = 1001\na = b\n", "app.ini:3: for-times = 1001: it runs more than 1000 times"),
        ("[uwsgi]\nfor-times = 1" + "0" * 9_999 + "\na = b\n", "app.ini:3: for-times = 1000"),
        ("[uwsgi]\nfor = " + "a " * 1_001 + "\na = b\n", "app.ini:3: for = a a "),
        ("[uwsgi]\nfor-glob = many/*\na = b\n", "app.ini:3: for-glob = many/*: it runs more than 1000 times"),
        ("[uwsgi]\n" + "a = b\n" * 10_001, "there are more than 10000 options"),
        ("[x]\na = b\n", "app.ini has no option in a section 'uwsgi'"),
        ("#" * (MAX_FILE + 1), "has more than 1048576 characters"),
    ],
)
def test_errors(tmp_path: Path, text: str, error: str) -> None:
    """What can't be read is an error that names the file and the line, and takes bounded time."""
    (tmp_path / "long").write_text("a" * (MAX_FILE + 1))
    (tmp_path / "lines").write_text("a\n" * 1_001)
    if "many" in text:
        (tmp_path / "many").mkdir()
        for number in range(1_001):
            (tmp_path / "many" / str(number)).touch()
    assert error in refused(tmp_path, text)


def test_loops_within_bounds(tmp_path: Path) -> None:
    """A loop may run a thousand times, and a file of lines have a mebibyte."""
    (tmp_path / "lines").write_text(("a" * 1_047 + "\n") * 1_000)
    (tmp_path / "app.ini").write_text(
        "[uwsgi]\nfor-times = 1000\na = %(_)\nend-for =\nfor-readline = lines\nb = %(_)\nend-for =\n"
    )
    settings = read_configuration("app.ini", str(tmp_path))
    assert [each.value for each in settings if each.key == "a"] == [str(each) for each in range(1, 1_001)]
    assert [each.value for each in settings if each.key == "b"] == ["a" * 1_047] * 1_000


def test_no_endless_inheritance(tmp_path: Path) -> None:
    """Files that inherit each other end with an error, too."""
    (tmp_path / "b.ini").write_text("[uwsgi]\ninherit = app.ini\n")
    assert f"more than {MAX_FILES} of them" in refused(tmp_path, "[uwsgi]\ninherit = b.ini")


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("a.yaml", "uwsgi:\n  a: [1]\n", "a.yaml:2: this form of YAML is not read here"),
        ("a.yaml", "uwsgi:\n  a\n", "a.yaml:2: write 'key: value'"),
        ("a.yaml", "uwsgi:\n\ta: 1\n", "a.yaml:2: YAML is not indented with tabs"),
        ("a.xml", "<uwsgi>\n<a>", "a.xml:2: "),
        ("a.xml", "<!DOCTYPE x [<!ENTITY y 'z'>]><uwsgi/>", "a.xml:1: a document type is not read"),
        ("a.xml", "<uwsgi>\n<a><b/></a></uwsgi>", "a.xml:2: <b> has parts"),
        ("a.json", '{"uwsgi":\n', "a.json:2: "),
        ("a.json", '{"uwsgi": 1}', "a.json: 'uwsgi' is not an object"),
        ("a.json", '{"uwsgi": {"a": {}}}', "a.json: the value of 'a' is neither text nor a number"),
        ("a.json", "[" * 100_000, "a.json: it is nested too deeply"),
    ],
)
def test_errors_of_other_formats(tmp_path: Path, name: str, text: str, error: str) -> None:
    """YAML, XML and JSON that can't be read is an error with the line."""
    assert error in refused(tmp_path, text, name)


def test_yaml(tmp_path: Path) -> None:
    """A list gives an option several times, quotes are removed, and comments begin behind a blank."""
    text = "# x\n---\nuwsgi:\n  env:\n  - 'A=''1'''\n  - \"B=#2\" # x\n  master: true\n\n  url: a#b\nx:\n n: 1"
    (tmp_path / "a.yaml").write_text(text)
    found = [(each.key, each.value, each.place.line) for each in read_configuration("a.yaml", str(tmp_path))]
    assert found == [("env", "A='1'", 5), ("env", "B=#2", 6), ("master", "true", 7), ("url", "a#b", 9)]


def test_json(tmp_path: Path) -> None:
    """Booleans are 1 and 0, and a list gives an option several times."""
    (tmp_path / "a.json").write_text(
        '{"x": {}, "uwsgi": {"env": ["A=1", "B=2"], "master": true, "n": null, "p": 4}}'
    )
    found = [(each.key, each.value) for each in read_configuration("a.json", str(tmp_path))]
    assert found == [("env", "A=1"), ("env", "B=2"), ("master", "1"), ("n", "0"), ("p", "4")]


def test_sections(tmp_path: Path) -> None:
    """A section is chosen behind the file's name."""
    (tmp_path / "a.ini").write_text("[uwsgi]\na = 1\n[two]\na = 2 %x\n")
    assert read(tmp_path, "a.ini:two") == {"a": "2 two"}
