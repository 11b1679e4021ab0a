"""The drivers that send requests, each in its own process; :mod:`benchmarks.drive` runs them."""
