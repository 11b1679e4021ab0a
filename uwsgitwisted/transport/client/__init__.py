"""The calling side of a connection."""
