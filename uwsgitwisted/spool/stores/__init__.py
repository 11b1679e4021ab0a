"""Where tasks are kept: one interface, and a store for each database."""
