"""Runs the three examples on this machine with real processes and real sockets, and shows what happens.

    python examples/demo.py

It starts a renderer, a hand-written node that does the same, three front nodes, five computing nodes and a
spooler, each as a twistd process on a free port of 127.0.0.1, and nginx if that is installed. At its end it
stops all of them in any case. It exits with status 0 if everything was as expected; otherwise it prints what
was not, and exits with status 1.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, NoReturn

EXAMPLES = Path(__file__).resolve().parent
sys.path[:0] = [str(EXAMPLES / "cpu_fanout"), str(EXAMPLES / "central_spooler")]

from compare import compare  # noqa: E402
from demo_support import HOST, DemoFailed, Service, Services, Terminal, wait_for  # noqa: E402
from demo_web import HOW_TO_INSTALL, WebServer, find_nginx  # noqa: E402
from enqueue import enqueue  # noqa: E402

from uwsgitwisted.blocking import send_uwsgi_message  # noqa: E402
from uwsgitwisted.errors import UwsgiError  # noqa: E402

#: One worker process per service, since all eleven services run on one machine.
ONE_WORKER = ("--engine", "processes:1")
#: The query for the front nodes. The time is fixed, so that the pages can be compared.
QUERY = "n=12&time=1.5"
#: How many pages to get from nginx with all front nodes, and as many with one less.
WEB_REQUESTS = 6
#: The numbers for the computing nodes, and how many times slower than the fastest each is.
FAN_OUT, SLOWDOWNS = range(2_500), (1, 1, 1, 2, 4)
#: Seconds from the acceptance of the second task to its time. The spooler is killed in between.
TASK_DELAY = 3
#: Seconds for a task to run once its time has come.
TASK_LIMIT = 30


class Cluster(NamedTuple):
    """The services of the demo."""

    renderer: Service
    hand_written: Service
    fronts: list[Service]
    computing: list[Service]
    spooler: Service
    tasks_log: Path


def describe(services: Services, scratch: Path) -> Cluster:
    """Describe the services of the demo.

    :param scratch: the directory of the spool and of its tasks' log.
    """
    mako, cpu, spool = (EXAMPLES / name for name in ("mako_cluster", "cpu_fanout", "central_spooler"))
    node = ("uwsgi-node", *ONE_WORKER, "--handler")
    renderer = services.add(
        "renderer", "uwsgi-renderer", *ONE_WORKER, "--templates", "templates", directory=mako
    )
    hand_written = services.add("hand-written node", *node, "my_server", directory=mako)
    places = {"RENDERERS": f"{HOST}:{hand_written.port} {HOST}:{renderer.port}"}
    tasks_log = scratch / "tasks.log"
    tasks_log.touch()
    return Cluster(
        renderer,
        hand_written,
        [
            services.add(
                name,
                *(*node, "front_node", "--wsgi", "web_front:application"),
                directory=mako,
                environment={**places, "NODE": name},
            )
            for name in (f"front node {number}" for number in range(1, 4))
        ],
        [
            services.add(
                f"computing node {number}",
                *(*node, "my_cpu"),
                directory=cpu,
                environment={"SLOWDOWN": str(slowdown)},
            )
            for number, slowdown in enumerate(SLOWDOWNS, 1)
        ],
        services.add(
            "spooler",
            *("uwsgi-spooler", *ONE_WORKER, "--spool", f"sqlite:{scratch / 'spool.sqlite'}"),
            *("--handler", "my_tasks"),
            directory=spool,
            environment={"TASKS_LOG": str(tasks_log)},
        ),
        tasks_log,
    )


def start(terminal: Terminal, services: Services, cluster: Cluster) -> None:
    """Start every service and list them."""
    count = len(services)
    terminal.headline("Starting the cluster")
    rows = [("service", "address", "process")]
    with terminal.progress(f"starting {count} twistd processes, a worker in each") as tell:
        for service in services.start_all():
            rows.append((service.name, f"{HOST}:{service.port}", str(service.pid)))
            tell(f"{len(rows) - 1}/{count}")
    terminal.table(rows)


def web_server(terminal: Terminal, services: Services, cluster: Cluster, scratch: Path) -> None:
    """Scenario 1, for browsers: nginx distributes requests over the front nodes, one of which is killed."""
    terminal.headline("1. A web server with remote templates")
    program = find_nginx()
    if program is None:
        terminal.say(f"What browsers would get is left out, since nginx is missing: {HOW_TO_INSTALL}")
        return
    terminal.say(
        "nginx takes requests like a browser's and distributes them over the front nodes. Each computes the "
        "Fibonacci sequence in a WSGI application, and has the page rendered by the renderer."
    )
    with WebServer(program, scratch / "nginx", [front.port for front in cluster.fronts]) as web:
        terminal.good(f"started nginx at http://{HOST}:{web.port} (process {web.pid})")
        pages = get_pages(terminal, web)
        killed = cluster.fronts[0]
        services.kill(killed)
        terminal.good(f"killed {killed.name} with SIGKILL; the others answer for it:")
        pages |= get_pages(terminal, web)
        with terminal.progress("starting it again"):
            services.start(killed)
            services.wait_until_up(killed)
    if len(pages) != 1 or "<td>89</td>" not in pages.copy().pop():
        raise DemoFailed(f"one page with F(11) = 89 was expected, but there are {len(pages)}: {pages!r}")
    terminal.good(f"{2 * WEB_REQUESTS} pages, all the same")


def get_pages(terminal: Terminal, web: WebServer) -> set[str]:
    """Get the page a few times, show who has answered, and return the different texts.

    :raises DemoFailed: if a request fails.
    """
    rows, texts = [("answered by", "after")], set()
    for _ in range(WEB_REQUESTS):
        began = time.perf_counter()
        node, text = web.get(f"/?{QUERY}&renderer=1")
        rows.append((node, f"{(time.perf_counter() - began) * 1000:.1f} ms"))
        texts.add(text)
    terminal.table(rows)
    return texts


def remote_templates(terminal: Terminal, cluster: Cluster) -> None:
    """Scenario 1, for programs: each front node gets the same page from both nodes that render."""
    terminal.say(
        "The same nodes answer messages. Each gets a query string, computes the Fibonacci sequence and has a "
        "text rendered elsewhere: by the handler that is written like old uWSGI code, and by the renderer."
    )
    rows = [("front node", "hand-written node", "renderer")]
    pages: set[object] = set()
    for front in cluster.fronts:
        times = []
        for place in range(2):
            began = time.perf_counter()
            pages.add(send_uwsgi_message(HOST, front.port, 33, 0, f"{QUERY}&renderer={place}", 30))
            times.append(f"{(time.perf_counter() - began) * 1000:.1f} ms")
        rows.append((front.name, times[0], times[1]))
    if len(pages) != 1:
        raise DemoFailed(f"one page was expected, but there are {len(pages)} different ones: {pages!r}")
    page = str(pages.pop())
    if "F(11) = 89" not in page:
        raise DemoFailed(f"the page lacks F(11) = 89:\n{page}")
    terminal.show(page.splitlines())
    terminal.table(rows)
    terminal.good("six pages, all the same")


def cpu_fan_out(terminal: Terminal, cluster: Cluster) -> None:
    """Scenario 2: five nodes of different speed compute in parallel, with the work divided in two ways."""
    cores = available_cores()
    terminal.headline("2. CPU fan-out")
    terminal.say(
        f"Five nodes compute n**4096 for {len(FAN_OUT):,} numbers, on the {cores} "
        f"core{'s' * (cores != 1)} that this machine has to give. Two of them are slower than the others. In "
        "equal parts, as the original call has it, the slowest node decides; a cluster gives each node a "
        "further piece when it has done one. A # is a time in which a node computes."
    )
    with terminal.progress("five nodes compute"):
        shown = compare([f"{HOST}:{node.port}" for node in cluster.computing], FAN_OUT)
    terminal.show(shown)


def central_spooler(terminal: Terminal, services: Services, cluster: Cluster) -> None:
    """Scenario 3: a task runs, and another one survives when the spooler is killed."""
    spooler = cluster.spooler
    terminal.headline("3. Central spooler")
    accept(terminal, cluster, {"key1": "value1", "key2": "value2"})
    with terminal.progress("the task runs in a worker"):
        wait_for_task(cluster, "key1=value1 key2=value2")
    due = time.time() + TASK_DELAY
    accept(terminal, cluster, {"key1": "survivor", "at": f"{due:.3f}"})
    killed = spooler.pid
    services.kill(spooler)
    if "survivor" in cluster.tasks_log.read_text() or time.time() > due:
        raise DemoFailed("the second task was to run later, so that the spooler can be killed before")
    terminal.good(f"killed the spooler (process {killed}) with SIGKILL, before the task's time")
    with terminal.progress("starting it again"):
        services.start(spooler)
        services.wait_until_up(spooler)
    with terminal.progress(f"the task runs in the new spooler (process {spooler.pid})"):
        wait_for_task(cluster, "survivor")
    terminal.say("What the tasks have written:")
    terminal.show(cluster.tasks_log.read_text().splitlines())


def accept(terminal: Terminal, cluster: Cluster, task: dict[str, str]) -> None:
    """Enqueue a task."""
    answer = enqueue(HOST, cluster.spooler.port, task)
    if answer is not True:
        raise DemoFailed(f"the spooler answered {answer!r} to the task {task}, not True")
    terminal.good(f"True: the spooler has {task} on its disk")


def wait_for_task(cluster: Cluster, text: str) -> None:
    """Wait until the task that writes *text* has run."""
    wait_for(
        lambda: text in cluster.tasks_log.read_text(), TASK_DELAY + TASK_LIMIT, f"the task {text!r} to run"
    )


def available_cores() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run(terminal: Terminal, scratch: Path) -> None:
    """Run the three scenarios.

    :raises DemoFailed: if something is not as expected.
    """
    with Services(scratch) as services, explained(terminal, services):
        cluster = describe(services, scratch)
        start(terminal, services, cluster)
        web_server(terminal, services, cluster, scratch)
        remote_templates(terminal, cluster)
        cpu_fan_out(terminal, cluster)
        central_spooler(terminal, services, cluster)
        terminal.headline("Stopping")
        with terminal.progress("stopping every process"):
            killed = services.stop()
        if killed:
            names = ", ".join(service.name for service in killed)
            raise DemoFailed(f"these did not stop at SIGTERM and had to be killed: {names}")


@contextmanager
def explained(terminal: Terminal, services: Services) -> Iterator[None]:
    """If an error stops the demo, show the ends of the logs that contain errors."""
    try:
        yield
    except (DemoFailed, UwsgiError):
        for name, end in services.complaints().items():
            terminal.say(f"The {name} has logged:")
            terminal.show(end.splitlines())
        raise


def main() -> int:
    """Run the demo and return the exit status."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    terminal = Terminal(sys.stdout)
    try:
        with tempfile.TemporaryDirectory(prefix="uwsgitwisted-demo-") as scratch:
            run(terminal, Path(scratch))
    except (DemoFailed, UwsgiError) as error:
        terminal.bad(f"{error}" if isinstance(error, DemoFailed) else f"{type(error).__name__}: {error}")
        return 1
    except KeyboardInterrupt:
        terminal.bad("interrupted; everything that was started has been stopped")
        return 130
    terminal.headline(f"All three scenarios are as expected ({terminal.elapsed:.0f} s)")
    return 0


def _interrupt(*_: object) -> NoReturn:
    """Stop everything; a second signal must not interrupt that."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
