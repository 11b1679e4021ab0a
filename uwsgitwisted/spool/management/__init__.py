"""What people ask of a queue, by name."""
