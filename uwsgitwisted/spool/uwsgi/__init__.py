"""The spool directories of a real uWSGI."""
