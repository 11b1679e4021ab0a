"""Which responders a node, a renderer and a spooler have."""
