"""Where handlers run: worker processes or the reactor."""
