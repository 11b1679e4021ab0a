"""Twisted's own applications: runs twisted.web resources in the reactor's process, behind a web server."""
