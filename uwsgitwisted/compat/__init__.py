"""The ``uwsgi`` and ``uwsgidecorators`` modules in a program that is not one of our workers.

    import uwsgitwisted.compat

    uwsgitwisted.compat.install(spooler="10.0.0.7:3034")

    from my_tasks import send_mail  # a module that imports uwsgidecorators

    send_mail.spool(to="ann@example.com")

A program that shall not be changed runs as ``python -m uwsgitwisted.compat script.py``.
"""

from types import ModuleType

from uwsgitwisted.worker.compat.install import install_in_program as _install_in_program

__all__ = ["install"]


def install(spooler: str | None = None) -> ModuleType:
    """Make ``import uwsgi`` and ``import uwsgidecorators`` give our modules, and return the first.

    In a real uWSGI, its own stay, and its ``uwsgi`` is returned.

    :param spooler: the address of the spooler that gets the tasks, such as ``"10.0.0.7:3034"``; None for the
        one in the environment variable ``UWSGITWISTED_SPOOLER``.
    :raises InvalidAddress: if it is no address.
    """
    return _install_in_program(spooler)
