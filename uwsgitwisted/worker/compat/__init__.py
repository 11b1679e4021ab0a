"""The modules that code written for uWSGI imports."""
