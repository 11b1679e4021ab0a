"""Which node does what, and when, sans-IO: the decisions of a cluster, for each of its shells."""
