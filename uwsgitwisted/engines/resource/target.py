"""Finds the twisted.web resource that ``--resource`` names."""

from __future__ import annotations

import re
from typing import Any

from twisted.web.resource import IResource

from uwsgitwisted.errors import StartupError
from uwsgitwisted.worker.handlers.module import load_module

_TARGET = re.compile(r"(?P<module>\w+(\.\w+)*)[.:](?P<name>\w+)")


def load_resource(target: str) -> IResource:
    """Import a resource.

    :param target: ``package.module.name``. The name is that of a resource, of a class of resources or another
        callable without arguments that returns one, or of a Klein application.
    :raises StartupError: if there is no such resource; its text says why.
    """
    parts = _TARGET.fullmatch(target)
    if parts is None:
        raise StartupError(f"--resource {target}: write 'package.module.Class', or 'package.module.name'")
    module = load_module(parts["module"], "resource")
    try:
        found = getattr(module, parts["name"])
    except AttributeError:
        raise StartupError(
            f"--resource {target}: the module {parts['module']!r} has no {parts['name']!r}"
        ) from None
    try:
        resource = _resource_of(found)
    except Exception as error:
        raise StartupError(f"--resource {target}: {type(error).__name__}: {error}") from error
    if resource is None:
        raise StartupError(
            f"--resource {target}: {parts['name']!r} gives no twisted.web resource; name an IResource, a class "
            "or a function without arguments that gives one, or a Klein application"
        )
    return resource


def _resource_of(found: Any) -> IResource | None:
    """Return *found* if it is a resource, or else the one that it gives, if it does."""
    for _ in range(_STEPS):
        if IResource.providedBy(found):
            resource: IResource = found
            return resource
        # An instance of Klein has its resource in a method.
        of_klein = None if isinstance(found, type) else getattr(found, "resource", None)
        make = of_klein if callable(of_klein) else found
        if not callable(make):
            return None
        found = make()
    return found if IResource.providedBy(found) else None


#: A function may return a Klein application, whose method returns the resource.
_STEPS = 2
