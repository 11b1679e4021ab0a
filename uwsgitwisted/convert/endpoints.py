"""Turns uWSGI's addresses, such as ``:3031`` or ``/run/app.sock``, into endpoints and addresses of ours."""

from __future__ import annotations

import ipaddress
import re

from uwsgitwisted.convert.plan import Plan, RefusedValue

_ADDRESS = re.compile(r"(?P<host>\[[^\]]*\]|[^:\[\]]*):(?P<port>\d+)$", re.ASCII)
#: Hosts that mean every interface.
_ANY = ("", "*", "0.0.0.0")  # noqa: S104 - uWSGI's forms of it


def _split(address: str) -> tuple[str, str] | None:
    """Return the host and the port of an address; None for the path of a UNIX socket.

    :raises RefusedValue: if it is something else.
    """
    if address.startswith("@"):
        raise RefusedValue("a name in the abstract namespace has no permissions: use a path")
    if "://" in address or address.startswith("="):
        raise RefusedValue("a socket that another process has opened: `--listen systemd:domain=INET:index=0`")
    if (match := _ADDRESS.match(address)) is None:
        if "/" not in address and ":" in address:
            raise RefusedValue(f"{address!r} is neither HOST:PORT nor a path")
        return None
    host = match["host"].strip("[]")
    host = {"localhost": "127.0.0.1"}.get(host, "0.0.0.0" if host in _ANY else host)  # noqa: S104
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise RefusedValue(f"write the address of the interface instead of {host!r}") from None
    return host, match["port"]


def endpoint(plan: Plan, value: str, *, tls: bool = False) -> str:
    """Return the endpoint on which a service listens, with the socket's permissions and backlog.

    :param value: uWSGI's address; for TLS with the files of the certificate and of the key behind commas.
    :raises RefusedValue: if there is no such endpoint.
    """
    address, *files = value.split(",")
    if tls and len(files) < 2:
        raise RefusedValue("it has an address, a certificate and a key, with commas between")
    place = _split(address.strip())
    if place is None:
        parts = [f"unix:{_escape(plan.absolute(address))}"]
        if "chmod" in plan.values:
            parts.append(f"mode={plan.values['chmod']}")
    else:
        host, port = place
        kind = "ssl" if tls else "tcp6" if ":" in host else "tcp"
        parts = [f"{kind}:{port}:interface={_escape(host)}"]
    if tls:
        certificate, key = (_escape(plan.absolute(each.strip())) for each in files[:2])
        parts += [f"privateKey={key}", f"certKey={certificate}"]
    if "listen" in plan.values:
        parts.append(f"backlog={plan.values['listen']}")
    return ":".join(parts)


def _escape(text: str) -> str:
    return re.sub(r"([\\:=])", r"\\\1", text)


def reached_at(plan: Plan, value: str) -> str:
    """Return the address by which others on this machine reach what listens at *value*."""
    place = _split(value.partition(",")[0].strip())
    if place is None:
        return plan.absolute(value)
    host, port = place
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def port_of(value: str) -> int:
    """Return the TCP port of an address, or 0."""
    match = _ADDRESS.match(value.partition(",")[0].strip())
    return int(match["port"]) if match else 0
