"""Many nodes as one, with Deferreds."""

from uwsgitwisted.cluster.cluster import Cluster

__all__ = ["Cluster"]
