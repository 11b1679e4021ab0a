"""The uwsgi cluster protocol for Twisted.

Import what you need from its module: :mod:`uwsgitwisted.client` for Deferreds, :mod:`uwsgitwisted.blocking`
for plain scripts, :mod:`uwsgitwisted.errors` for what they raise. This file imports nothing, so that neither
a script nor a worker process pays for what it doesn't use.
"""

__version__ = "0.1.0"
