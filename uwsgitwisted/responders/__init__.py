"""What answers a packet, a module a kind."""
