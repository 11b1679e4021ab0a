"""Tells twistd of our commands; each one's module is imported only when it is used."""

from twisted.application.service import ServiceMaker

node = ServiceMaker(
    "uwsgitwisted node",
    "uwsgitwisted.taps.node",
    "A uwsgi cluster node: answers marshalled objects with a handler module's function.",
    "uwsgi-node",
)

renderer = ServiceMaker(
    "uwsgitwisted renderer",
    "uwsgitwisted.taps.renderer",
    "A uwsgi renderer: renders Mako templates for the nodes of a cluster.",
    "uwsgi-renderer",
)

spooler = ServiceMaker(
    "uwsgitwisted spooler",
    "uwsgitwisted.taps.spooler",
    "A uwsgi spooler: stores tasks on disk and runs them until they succeed.",
    "uwsgi-spooler",
)

router = ServiceMaker(
    "uwsgitwisted router",
    "uwsgitwisted.taps.router",
    "A uwsgi router: takes HTTP requests, and balances them over uwsgi nodes.",
    "uwsgi-router",
)
