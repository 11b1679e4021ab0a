"""Converts a configuration of uWSGI to commands of this package.

``configuration`` reads the files as uWSGI does, ``outcomes`` says what becomes of each option, ``plan``
collects what the options ask for, and ``commands``, ``systemd`` and ``nginx`` write it down.
"""
