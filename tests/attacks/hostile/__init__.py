"""Hostile peers: what one may do to a service, as a table, and a process that does it."""
