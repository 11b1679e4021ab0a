"""How fast this package is beside what else there is; docs/performance.md says how to read the tables."""
