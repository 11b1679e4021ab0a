"""Tasks that outlive a crash."""
