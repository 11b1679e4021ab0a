"""The serving side of a connection."""
