"""Where handlers run: worker processes, threads, an executor or the reactor."""
