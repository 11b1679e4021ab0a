"""Handlers: plain blocking functions that process packets in a worker, without Twisted."""
