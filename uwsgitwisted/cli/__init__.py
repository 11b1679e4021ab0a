"""The command ``uwsgitwisted``."""

from uwsgitwisted.cli.command import main

__all__ = ["main"]
