"""The options of each ``twistd`` command."""
