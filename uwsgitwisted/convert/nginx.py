"""Writes a server of nginx that stands before a node."""

from __future__ import annotations

from uwsgitwisted.convert.commands import Builder
from uwsgitwisted.convert.plan import Plan, quoted

#: How much longer nginx waits than a node, in seconds, so that the node ends a request that hangs.
_LATER = 15


def make_server(builder: Builder, plan: Plan) -> str:
    """Return a block ``server``."""
    address = builder.node_address
    timeout = int(plan.options["node"].get("--timeout") or 60) + _LATER
    application = [
        "include uwsgi_params;",
        f"uwsgi_pass {f'unix:{address}' if address.startswith('/') else address};",
        f"uwsgi_read_timeout {timeout}s;",
        *plan.location,
    ]
    lines = ["listen 80;", "server_name www.example.com;"]
    if "limit-post" in plan.values:
        lines.append(f"client_max_body_size {plan.values['limit-post']};")
    lines += plan.server
    for path, directory in builder.statics:
        prefix = path.rstrip("/") + "/"
        expires = [f"expires {plan.values['expires']}s;"] if "expires" in plan.values else []
        lines += _block(
            f"location {quoted(prefix)}", [f"alias {quoted(directory.rstrip('/') + '/')};", *expires]
        )
    if checked := plan.list("check-static"):
        lines += [f"root {quoted(plan.absolute(checked[0]))};"]
        lines += _block("location /", ["try_files $uri @application;"])
        lines += _block("location @application", application)
    else:
        lines += _block("location /", application)
    return "\n".join(_block("server", lines)) + "\n"


def _block(head: str, lines: list[str]) -> list[str]:
    return [f"{head} {{", *(f"    {line}" for line in lines), "}"]
