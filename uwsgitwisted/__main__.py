"""``python -m uwsgitwisted`` is the command ``uwsgitwisted``."""

from uwsgitwisted.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
