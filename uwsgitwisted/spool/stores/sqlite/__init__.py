"""A store in an SQLite file, for one spooler."""
