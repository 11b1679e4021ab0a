"""Answers web requests to a renderer: what fails there is answered with the template's name and line."""

from __future__ import annotations

from http import HTTPStatus

from uwsgitwisted.errors import RemoteError
from uwsgitwisted.interfaces import IEngine
from uwsgitwisted.responders.web import WebResponder

#: The error of :mod:`uwsgitwisted.worker.handlers.pages` whose text is for callers.
_FOR_CALLERS = "PageFailed"


class PageResponder(WebResponder):
    """Forwards requests for pages to an engine.

    :param engine: renders the pages.
    """

    def __init__(self, engine: IEngine) -> None:
        super().__init__(engine, idempotent=True)

    def explain(self, error: BaseException) -> tuple[HTTPStatus, str]:
        """Return the status of a request that failed with *error*, and the text that its caller gets."""
        if isinstance(error, RemoteError) and error.type == _FOR_CALLERS:
            return HTTPStatus.INTERNAL_SERVER_ERROR, error.message
        return super().explain(error)
