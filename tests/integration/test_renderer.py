"""Remote templates: old uWSGI code that renders with Mako, and the renderer, give the same text."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_twisted

from tests.integration.services import Launcher, Service, read_stats, script, until
from tests.integration.web_servers import ask
from uwsgitwisted import blocking
from uwsgitwisted.client import Client
from uwsgitwisted.errors import NoAnswer, RemoteError, RequestTimeout

pytestmark = pytest.mark.integration

TEMPLATE = """\
<%page args="attributes=None"/>\\
% for number in attributes['fib_sequence']:
<li>${number}</li>
% endfor
It is ${attributes['whattimeisit']} and <b>${attributes.get('name', 'nobody')}</b> is here.
"""
VARIABLES = {"fib_sequence": [0, 1, 1, 2, 3, 5, 8, 13, 21], "whattimeisit": 1.5, "name": "Zoë & co"}
RENDERED = (
    "".join(f"<li>{number}</li>\n" for number in VARIABLES["fib_sequence"])
    + "It is 1.5 and <b>Zoë & co</b> is here.\n"
)

#: A handler module as uWSGI 0.9's documents have it.
OLD_CODE = """
import uwsgi
from mako.template import Template

templates = {directory!r}

def makogenerator(obj, id):
    template, vars = obj
    return Template(filename=templates + "/" + template).render(attributes=vars)

uwsgi.message_manager_marshal = makogenerator
"""


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the templates, with a secret beside it."""
    root = tmp_path_factory.mktemp("site")
    (root / "secret.txt").write_text("secret")
    directory = root / "templates"
    (directory / "sub").mkdir(parents=True)
    (directory / "mytemplate.txt").write_text(TEMPLATE)
    (directory / "names.txt").write_text("${name} ${attributes['name']}")
    (directory / "sub" / "inner.txt").write_text("inner ${attributes['n']}")
    (directory / "broken.txt").write_text("${1 +}")
    (directory / "raises.txt").write_text("${1 / attributes['n']}")
    (directory / "leaves.txt").write_text('<%include file="../secret.txt"/>')
    (directory / "link.txt").symlink_to(root / "secret.txt")
    return directory


@pytest.fixture(scope="module")
def old_node(shared: Launcher, templates: Path) -> Service:
    """A node that runs the old code."""
    handler = OLD_CODE.format(directory=str(templates))
    return shared.start("uwsgi-node", "--engine", "processes:1", handler=handler, tcp=True)


@pytest.fixture(scope="module")
def shared_renderer(shared: Launcher, templates: Path) -> Service:
    """A renderer of the same templates."""
    return shared.start("uwsgi-renderer", "--engine", "processes:1", "--templates", str(templates), tcp=True)


@pytest.fixture
def renderer(shared_renderer: Service) -> Iterator[Service]:
    """That renderer; the test leaves its worker as it was."""
    before = shared_renderer.workers()
    yield shared_renderer
    assert shared_renderer.workers() == before


def _render(service: Service, name: object, variables: object) -> object:
    host, port = service.address
    return script(blocking.send_uwsgi_message, host, port, 33, 17, (name, variables), 30)


def test_the_same_text_from_both(old_node: Service, renderer: Service) -> None:
    """The scenario's call gives the same text from the old code and from the renderer."""
    assert _render(old_node, "mytemplate.txt", VARIABLES) == RENDERED
    assert _render(renderer, "mytemplate.txt", VARIABLES) == RENDERED


@pytest_twisted.ensureDeferred
async def test_the_same_text_from_both_with_deferreds(
    old_node: Service, renderer: Service, client: Client
) -> None:
    """The client gets the same from both."""
    results = await client.send_multi_message(
        [(service.address, ("mytemplate.txt", VARIABLES)) for service in (old_node, renderer)], 33, 17
    )
    assert results == [(True, RENDERED)] * 2


def test_old_code_asks_a_renderer(launch: Launcher, renderer: Service) -> None:
    """A front node's handler computes, has a renderer render with uwsgi.send_uwsgi_message, and returns it."""
    host, port = renderer.address
    handler = f"""
import uwsgi

def fibonacci(count, id):
    sequence = [0, 1]
    while len(sequence) < count:
        sequence.append(sequence[-1] + sequence[-2])
    variables = {{"fib_sequence": sequence, "whattimeisit": 1.5, "name": "Zoë & co"}}
    return uwsgi.send_uwsgi_message({host!r}, {port}, 33, 17, ("mytemplate.txt", variables), 30)

uwsgi.message_manager_marshal = fibonacci
"""
    fronts = [launch.start("uwsgi-node", "--engine", "processes:1", handler=handler) for _ in range(3)]
    assert [front.ask(9) for front in fronts] == [RENDERED] * 3


def test_names_and_directories(renderer: Service) -> None:
    """A variable can be had by its name, and a template may lie in a directory below."""
    assert _render(renderer, "names.txt", {"name": "x"}) == "x x"
    assert _render(renderer, "sub/inner.txt", {"n": 7}) == "inner 7"


@pytest.mark.parametrize(
    "name",
    [
        "../secret.txt",
        "sub/../../secret.txt",
        "/etc/passwd",
        "//etc/passwd",
        "..\\secret.txt",
        "link.txt",
        "leaves.txt",
        "mytemplate.txt\0",
        "",
        ".",
        "sub",
        "absent.txt",
        7,
        None,
    ],
)
def test_names_that_lead_out(renderer: Service, name: object) -> None:
    """A name that leads out of the directory, or to no template, is refused; the secret isn't revealed."""
    with pytest.raises((NoAnswer, RemoteError)):
        _render(renderer, name, {})
    assert _render(renderer, "names.txt", {"name": "x"}) == "x x"


@pytest.mark.parametrize("message", [None, "mytemplate.txt", (), ("mytemplate.txt",), ("names.txt", 7), {}, 7])
def test_requests_that_are_none(renderer: Service, message: object) -> None:
    """Anything but a pair of a name and variables is refused."""
    with pytest.raises(NoAnswer):
        renderer.ask(message)


@pytest_twisted.ensureDeferred
async def test_what_a_caller_is_told(renderer: Service, client: Client) -> None:
    """In a session the caller gets the template's error and its line."""
    for name, type_, told in (
        ("broken.txt", "Syntax", "broken.txt"),
        ("raises.txt", "ZeroDivisionError", "division"),
    ):
        with pytest.raises(RemoteError) as caught:
            await client.send_message(renderer.address, 33, 17, (name, {"n": 0}))
        assert type_ in f"{caught.value.type}{caught.value.message}"
        assert told in str(caught.value)
    assert await client.send_message(renderer.address, 33, 17, ("raises.txt", {"n": 2})) == "0.5"


def test_a_template_that_changes(renderer: Service, templates: Path) -> None:
    """The first request after a template's file has changed shows the new text."""
    changing = templates / "changing.txt"
    changing.write_text("first ${n}")
    assert _render(renderer, "changing.txt", {"n": 1}) == "first 1"
    changing.write_text("second, longer ${n}")
    assert _render(renderer, "changing.txt", {"n": 1}) == "second, longer 1"


def test_filters_and_strictness(launch: Launcher, templates: Path) -> None:
    """With --filters h values are escaped; with --strict a name that the caller didn't send is an error."""
    options = ("--engine", "processes:1", "--templates", str(templates), "--filters", "h", "--strict")
    renderer = launch.start("uwsgi-renderer", *options)
    assert renderer.ask(("names.txt", {"name": "<b>"})) == "&lt;b&gt; &lt;b&gt;"
    with pytest.raises(NoAnswer):
        renderer.ask(("names.txt", {"other": 1}))


def test_several_directories(launch: Launcher, templates: Path, tmp_path: Path) -> None:
    """The first directory that has a template wins."""
    (tmp_path / "names.txt").write_text("mine")
    renderer = launch.start(
        *("uwsgi-renderer", "--engine", "processes:1"),
        *("--templates", str(tmp_path), "--templates", str(templates)),
    )
    assert renderer.ask(("names.txt", {"name": 1})) == "mine"
    assert renderer.ask(("sub/inner.txt", {"n": 1})) == "inner 1"


def test_result_cache(launch: Launcher, tmp_path: Path) -> None:
    """The front keeps objects' pages, workers those of web requests; SIGHUP drops them, and --stats counts."""
    (tmp_path / "page.txt").write_text("${x}")
    renderer = launch.start(
        *("uwsgi-renderer", "--engine", "processes:1", "--templates", str(tmp_path)),
        *("--no-reload", "--result-cache", "1M", "--stats", f"unix:{tmp_path}/stats"),
    )
    for _ in range(3):
        assert renderer.ask(("page.txt", {"x": 1})) == "1"
        assert ask(renderer.address, "GET", "/page.txt?x=2").body == b"2"

    def figures() -> list[list[int]]:
        caches = read_stats(f"{tmp_path}/stats")["caches"]
        return [[cache[name] for name in ("hits", "miss", "items")] for cache in caches]

    until(lambda: figures() == [[2, 1, 1], [2, 1, 1]], "the figures")
    (tmp_path / "page.txt").write_text("new ${x}")
    assert renderer.ask(("page.txt", {"x": 1})) == "1"
    renderer.process.send_signal(signal.SIGHUP)
    renderer.wait_for("every worker was replaced")
    assert renderer.ask(("page.txt", {"x": 1})) == "new 1"
    until(lambda: figures() == [[3, 2, 1], [2, 1, 0]], "the figures")
    renderer.terminate()
    assert "result cache: 3 hits, 2 misses; 1 pages of " in renderer.log
    assert "result cache, HTTP and RPC: 2 hits, 1 misses; 1 pages of " in renderer.log


#: Templates that never end by themselves, and the line in which each is when it is killed.
HANGING = {"in_c.html": 2, "included.html": 3, "loop.j2": 2}


@pytest.fixture(scope="module")
def bounded(shared: Launcher, templates: Path) -> Service:
    """A renderer with small limits."""
    (templates / "loop.html").write_text("a\n<%\nwhile True: pass\n%>")
    (templates / "in_c.html").write_text("<%! import itertools %>\n${sum(itertools.repeat(0))}")
    (templates / "included.html").write_text("\n\n\n<%include file='loop.html'/>")
    (templates / "loop.j2").write_text(
        "\n{% for i in range(99999) %}{% for i in range(99999) %}{% endfor %}{% endfor %}"
    )
    (templates / "hungry.html").write_text(
        "<% eaten = [] %>\n% while True:\n<% eaten.append(bytearray(10**8)) %>\\\n% endwhile"
    )
    (templates / "endless.html").write_text("\n% while True:\ntext\n% endwhile")
    options = ("--timeout", "1", "--max-memory", "200M", "--max-output", "1M", "--result-cache", "1M")
    return shared.start(
        "uwsgi-renderer", "--engine", "processes:1", "--templates", str(templates), *options, tcp=True
    )


@pytest_twisted.ensureDeferred
async def test_a_template_that_hangs(bounded: Service, client: Client) -> None:
    """The request's error names the template and the line where it was; the log has the traceback."""
    for name, line in HANGING.items():
        where = "loop.html" if name == "included.html" else name
        with pytest.raises(RequestTimeout, match=rf"limit of 1 s.*in template '{where}', line {line}$"):
            await client.send_message(bounded.address, 33, 17, (name, {}))
        assert (
            await client.send_message(bounded.address, 33, 17, ("names.txt", {"name": name}))
            == f"{name} {name}"
        )
    assert 'File "template:loop.html", line 3 in render_body' in bounded.log


@pytest_twisted.ensureDeferred
async def test_a_template_that_eats_memory(bounded: Service, client: Client) -> None:
    """It fails in its line, and its worker is replaced; one that writes for ever fails at --max-output."""
    before = bounded.workers()
    with pytest.raises(RemoteError, match=r"template 'hungry\.html', line 3: MemoryError"):
        await client.send_message(bounded.address, 33, 17, ("hungry.html", {}))
    until(lambda: bounded.workers() != before, "another worker")
    with pytest.raises(RemoteError, match=r"template 'endless\.html', line [23]: OutputTooLarge"):
        await client.send_message(bounded.address, 33, 17, ("endless.html", {}))
    assert await client.send_message(bounded.address, 33, 17, ("names.txt", {"name": 1})) == "1 1"


def test_many_pages(bounded: Service) -> None:
    """A list of pairs is answered in one message, each page with its own text or error."""
    pages = bounded.ask([("names.txt", {"name": 1}), ("nothing.txt", {}), ("sub/inner.txt", {"n": 2})])
    assert pages == [
        (True, "1 1"),
        (False, "there is no template 'nothing.txt' in the template directories"),
        (True, "inner 2"),
    ]
