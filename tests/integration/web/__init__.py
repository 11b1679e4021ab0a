"""Tests of web requests: nodes, the router, nginx, frameworks, a browser."""
