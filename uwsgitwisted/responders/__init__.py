"""Responders: one module for each kind of packet."""
