"""Attacks on real services, and what a good caller beside them notices."""
