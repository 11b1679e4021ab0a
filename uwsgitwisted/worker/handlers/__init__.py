"""What a worker does with a packet: plain blocking functions that know no Twisted."""
