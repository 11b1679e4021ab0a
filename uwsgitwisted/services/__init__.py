"""The services: a node, a renderer and a spooler, composed of an engine and responders."""
