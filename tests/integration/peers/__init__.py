"""Our services among uWSGI's, and among programs for uWSGI."""
