"""Twisted protocols and factories: bytes to packets and back, with time limits and back-pressure."""
