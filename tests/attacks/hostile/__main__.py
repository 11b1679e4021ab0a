"""A hostile peer's process: runs random behaviours until its time is up.

    python -m tests.attacks.hostile KIND PORT NUMBER SECONDS SEED [NAME ...]

NUMBER, from 0, makes it come from 127.0.0.2 and so on. It attacks loopback only, with low priority, ends by
itself, and prints in JSON how often it did what.
"""

from __future__ import annotations

import collections
import json
import os
import resource
import signal
import sys
import time

from tests.attacks.hostile.behaviours import BEHAVIOURS, behaviours_for
from tests.attacks.hostile.peer import Peer

#: Lower than the attacked services': the attack should hurt by its requests, not by using the processors.
_NICE = 10
#: Seconds after which it is ended by the system, whatever it does, beside its own.
_GRACE = 20
_DESCRIPTORS, _MEMORY = 1_024, 1 << 30
#: Seconds between two behaviours: from the least to the most.
_PAUSE = (0.05, 0.3)


def main(kind: str, port: str, number: str, seconds: str, seed: str, *only: str) -> None:
    """Attack the service at *port*."""
    os.nice(_NICE)
    signal.alarm(int(float(seconds)) + _GRACE)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(_DESCRIPTORS, hard), hard))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    peer = Peer(kind, ("127.0.0.1", int(port)), f"127.0.0.{2 + int(number)}", f"{seed} {number}")
    names = behaviours_for(kind, float(seconds), first=number == "0", only=list(only))
    done: collections.Counter[str] = collections.Counter()
    ends = time.monotonic() + float(seconds)
    while names and time.monotonic() < ends:
        name = peer.random.choice(names)
        try:
            BEHAVIOURS[name].run(peer, ends)
        except OSError:
            done[f"{name}, cut off"] += 1
        else:
            done[name] += 1
        time.sleep(peer.random.uniform(*_PAUSE))
    peer.close()
    print(json.dumps(done))


if __name__ == "__main__":
    main(*sys.argv[1:])
