"""Benchmarks of this package against its alternatives; docs/performance.md explains the tables."""
