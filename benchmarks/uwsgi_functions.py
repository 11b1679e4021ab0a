"""The RPC function of a real uWSGI, which echoes a marshalled object."""

from __future__ import annotations

import marshal

import uwsgi


def echo(data: bytes) -> bytes:
    """Load and dump the object, as a function that uses it would."""
    return marshal.dumps(marshal.loads(data))


uwsgi.register_rpc("echo", echo)
