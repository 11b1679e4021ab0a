"""What makes the requests, each in a process of its own; :mod:`benchmarks.drive` runs them."""
