"""What a real uWSGI runs: a function for its RPC, which echoes a marshalled object."""

from __future__ import annotations

import marshal

import uwsgi


def echo(data: bytes) -> bytes:
    """Load and dump, as a function that does something with the object would."""
    return marshal.dumps(marshal.loads(data))


uwsgi.register_rpc("echo", echo)
