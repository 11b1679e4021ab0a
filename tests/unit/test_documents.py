"""What the documents say: their code compiles, their commands parse, their tables and links are right."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from twisted.python.usage import Options

from tests.documents import DOCUMENTS, EXAMPLES, ROOT, Block, blocks
from uwsgitwisted.cli.parser import make_parser
from uwsgitwisted.worker.compat.install import install

OPTIONS = ROOT / "docs" / "options.md"
#: The services with the options of the first table.
SERVERS = ("node", "renderer", "spooler")
SERVICES = (*SERVERS, "router")

_LINK = re.compile(r"\]\(([^)#]*)(?:#([^)]*))?\)")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
_COMMAND = re.compile(r"\btwistd\s(?:-\S+\s+)*uwsgi-(\w+)((?:[ ]+[^`\n]+)?)")
_REDIRECTION = re.compile(r" [<>] \S+")
_SCRIPT = re.compile(r"\b(?:sh|bash) ([\w./]+)")
_ROW = re.compile(r"^\| `--([\w-]+)` \| (.*) \|$", re.MULTILINE)
_KIND = re.compile(r'^directory = "(\w+)"$', re.MULTILINE)


PYTHON = blocks("python")
HANDLERS = [block for block in PYTHON if "import uwsgi\n" in block.code]


def commands() -> Iterator[tuple[str, list[str]]]:
    """Give each command line of a service in the documents and examples: the service and its options."""
    for place in [*DOCUMENTS, *EXAMPLES]:
        for service, options in _COMMAND.findall(place.read_text()):
            if "..." not in options and "--help" not in options:
                yield service, shlex.split(options)


COMMANDS = list(commands())
QUEUE_COMMANDS = [
    line for block in blocks("sh") for line in block.code.splitlines() if line.startswith("uwsgitwisted ")
]


def each_of(found: list[Block]) -> pytest.MarkDecorator:
    """Parametrize a test with code blocks."""
    parameters = [pytest.param(block.code, id=f"{block.document}:{block.number}") for block in found]
    return pytest.mark.parametrize("code", parameters)


def options_of(service: str) -> Options:
    """Return a service's options, as twistd has them."""
    made: Options = importlib.import_module(f"uwsgitwisted.taps.{service}").Options()
    return made


def table_rows() -> dict[str, dict[str, str]]:
    """Return what docs/options.md says: by service, the default's cell of each option."""
    said: dict[str, dict[str, str]] = {service: {} for service in SERVICES}
    for option, rest in _ROW.findall(OPTIONS.read_text()):
        cells = re.split(r" *\| *", rest)
        services = SERVERS if len(cells) == 2 else cells.pop(0).split(", ")
        for service in services:
            said[service][option] = cells[0]
    return said


@pytest.fixture
def uwsgi(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Give the uwsgi module, without handlers, and put everything back when the test ends."""
    module = install()
    monkeypatch.setattr(module, "message_manager_marshal", None)
    monkeypatch.setattr(module, "spooler", None)
    return module


def test_there_is_something_to_test() -> None:
    """The documents have code, handlers and commands, so that none of the tests here is empty."""
    assert len(PYTHON) >= 6
    assert len(HANDLERS) >= 2
    assert {service for service, _ in COMMANDS} == set(SERVICES)
    assert len(QUEUE_COMMANDS) >= 4


@each_of(PYTHON)
def test_python_compiles(code: str) -> None:
    """Every Python block of the documents compiles."""
    compile(code, "<document>", "exec")


@each_of(PYTHON)
def test_imports_exist(code: str) -> None:
    """What a block imports of this package is there."""
    for statement in ast.walk(ast.parse(code)):
        if isinstance(statement, ast.ImportFrom) and str(statement.module).startswith("uwsgitwisted"):
            module = importlib.import_module(str(statement.module))
            for alias in statement.names:
                assert hasattr(module, alias.name), f"{statement.module} has no {alias.name}"


@each_of(HANDLERS)
def test_handlers_set_a_function(code: str, uwsgi: ModuleType) -> None:
    """A handler module of the documents runs, and sets or registers a function that is called."""
    exec(compile(code, "<document>", "exec"), {})
    assert callable(uwsgi.message_manager_marshal or uwsgi.spooler) or uwsgi.rpc_list()


@pytest.mark.parametrize(("service", "arguments"), COMMANDS)
def test_commands_parse(service: str, arguments: list[str]) -> None:
    """Every twistd command of the documents and examples has options that its service knows."""
    options_of(service).parseOptions(arguments)


@pytest.mark.parametrize("line", QUEUE_COMMANDS)
def test_queue_commands_parse(line: str) -> None:
    """Every line of a shell that uses the command `uwsgitwisted` has arguments that it knows."""
    make_parser().parse_args(shlex.split(_REDIRECTION.sub("", line))[1:])


@pytest.mark.parametrize("service", SERVICES)
def test_option_table_is_complete(service: str) -> None:
    """docs/options.md names every option of a service, and none that it doesn't have."""
    known = {name.rstrip("=") for name in options_of(service).longOpt}
    long_names = {name for name in known if len(name) > 1} - {"help", "version"}
    assert set(table_rows()[service]) == long_names


@pytest.mark.parametrize("service", SERVICES)
def test_option_table_has_the_defaults(service: str) -> None:
    """A default that docs/options.md gives in code is the one that the option has."""
    defaults = options_of(service).defaults
    said = {name: cell.strip("`") for name, cell in table_rows()[service].items() if cell.startswith("`")}
    for name in ("listen", "http"):  # settled when the options are parsed
        said.pop(name, None)
    assert said == {name: str(defaults[name]) for name in said}
    assert said


@pytest.mark.parametrize("service", SERVICES)
def test_default_ports(service: str) -> None:
    """docs/options.md says where each service listens by default."""
    assert f"`{options_of(service).default_listen}`" in OPTIONS.read_text()


def leads_somewhere(document: Path, path: str, anchor: str) -> bool:
    """Return whether a link of *document* leads to a file, and to one of its headings if it names one."""
    target = document.parent / path if path else document
    if not anchor:
        return target.exists()
    headings = _HEADING.findall(target.read_text())
    return anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_links_lead_somewhere(document: Path) -> None:
    """Every relative link leads to a file and a heading in it, and every script that is to be run exists."""
    text = document.read_text()
    links = [link for link in _LINK.findall(text) if "://" not in link[0]]
    missing = [link for link in links if not leads_somewhere(document, *link)]
    missing += [(script, "") for script in _SCRIPT.findall(text) if not (ROOT / script).exists()]
    assert missing == []


def test_readme_is_short() -> None:
    """The README has 150 lines at most, and an answer of a node within the first 30."""
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    assert "# 6" in "\n".join(lines[:30])


def test_changelog_fragments() -> None:
    """Every changelog fragment is of a kind that pyproject.toml has, and says something."""
    configuration = (ROOT / "pyproject.toml").read_text().partition("[[tool.towncrier.type]]")[2]
    kinds = set(_KIND.findall(configuration))
    assert kinds == {"added", "changed", "fixed", "removed", "security"}
    for fragment in (ROOT / "changelog.d").glob("[!.]*"):
        assert re.fullmatch(r"(\+[\w-]+|\d+)\.(\w+)\.md", fragment.name), fragment.name
        assert fragment.name.split(".")[1] in kinds
        assert fragment.read_text().strip()
