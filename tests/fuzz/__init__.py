"""A coverage-guided fuzzer for everything that reads a stranger's bytes.

Run it with ``python -m tests.fuzz``. What it finds is kept in ``cases/TARGET/`` and replayed by the tests.
"""
