"""Handler modules for the tests' services, as source: each is written into the directory of a service."""

from __future__ import annotations

#: A handler that does whatever harm the message names: ``(name, argument, ...)``.
FAULTS = """
import atexit, os, signal, subprocess, sys, time, uwsgi

def wait_for(started, path):
    open(started, "w").close()
    while not os.path.exists(path):
        time.sleep(0.01)
    return os.getpid()

def raise_(text):
    raise KeyError(text)

def loop():
    while True:
        pass

def close_socket():
    os.close(3)
    return "closed"

def grandchild(then):
    # It inherits the standard output and error, which the front reads.
    child = subprocess.Popen(["sleep", "600"])
    if then == "exit":
        open("grandchild", "w").write(str(child.pid))
        os._exit(3)
    return child.pid

ACTIONS = {
    "echo": lambda value: value,
    "pid": os.getpid,
    "wait_for": wait_for,
    "raise": raise_,
    "unmarshallable": object,
    "code": lambda: compile("1", "x", "eval"),
    "big": lambda size: b"x" * size,
    "sys_exit": lambda: sys.exit("leaving"),
    "os_exit": lambda: os._exit(3),
    "loop": loop,
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "terminate": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "close_socket": close_socket,
    "grandchild": grandchild,
    "recurse": lambda: eval("f(f)", {"f": lambda f: f(f)}),
    "interrupt": lambda: (_ for _ in ()).throw(KeyboardInterrupt()),
    "atexit": lambda path: atexit.register(os.mkdir, path) and None,
    "print": lambda text: print(text, flush=True),
}

def handle(message, modifier2):
    name, *arguments = message
    return ACTIONS[name](*arguments)

uwsgi.message_manager_marshal = handle
"""

#: A spooler function that notes each run in the file ``runs``, and then does what the task's ``do`` says.
TASKS = """
import json, os, signal, sys, time, uwsgi

def note(**what):
    line = json.dumps({"pid": os.getpid(), "front": uwsgi.masterpid(), "time": time.time(), **what})
    descriptor = os.open("runs", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, line.encode() + b"\\n")
    os.close(descriptor)

def wait(path):
    while not os.path.exists(path):
        time.sleep(0.01)
    note(finished=True)
    return uwsgi.SPOOL_OK

def fail(_):
    raise ValueError("this task fails")

ACTIONS = {
    "": lambda _: uwsgi.SPOOL_OK,
    "wait": wait,
    "retry": lambda _: uwsgi.SPOOL_RETRY,
    "ignore": lambda _: uwsgi.SPOOL_IGNORE,
    "fail": fail,
    "exit": lambda _: sys.exit(1),
    "kill": lambda _: os.kill(os.getpid(), signal.SIGKILL),
    "loop": lambda _: time.sleep(600),
}

def run(task):
    name = task.pop("spooler_task_name").decode()
    note(id=int(name), task={key.decode(): value.decode() for key, value in task.items()})
    return ACTIONS[task.get(b"do", b"").decode()](task.get(b"path", b"").decode())

uwsgi.spooler = run
"""
