"""Bytes to values and back: no Twisted, no sockets, no clock, no logging."""
