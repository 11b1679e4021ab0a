"""A site of twisted.web, but for how forms are parsed, failures logged, and where its resource is mounted."""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.logger import ILogObserver, LogEvent, Logger, LogLevel, globalLogPublisher
from twisted.python.failure import Failure
from twisted.web import http, server
from twisted.web.resource import IResource
from zope.interface import provider

from uwsgitwisted.engines.resource.forms import Fields, check_fields, parse_form
from uwsgitwisted.errors import UwsgiError
from uwsgitwisted.interfaces import Request
from uwsgitwisted.transport.reports import Reports
from uwsgitwisted.wire.failure import describe

_FAILED = b"500 Internal Server Error\n"


@provider(ILogObserver)
def _warn(event: LogEvent) -> None:
    """Log what is at least a warning: twisted.web has a line for each HEAD, which any peer can send."""
    if event["log_level"] >= LogLevel.warn:
        globalLogPublisher(event)


class ResourceRequest(server.Request):
    """twisted.web's request, but for forms, and for its end when the application raises.

    :param channel: a :class:`uwsgitwisted.engines.resource.channel.Channel`.
    """

    _log = Logger("twisted.web", observer=_warn)

    def __init__(self, channel: Any, *args: Any, **keywords: Any) -> None:
        super().__init__(channel, *args, **keywords)  # type: ignore[no-untyped-call]
        self._asked = channel.asked
        self._content_type = b""
        self._form: Fields = {}

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """Parse the form, if the body is one, and process the request.

        :raises ProtocolError: if the form is malformed.
        :raises MessageTooLarge: if it, or the query, has too much of something.
        """
        content: Any = self.content
        check_fields(path)
        if self.channel.web.is_form and content.tell():  # type: ignore[attr-defined]
            content.seek(0)
            self._content_type = self.getHeader(b"Content-Type") or b""
            self._form = parse_form(self._content_type, content.read())
            self.requestHeaders.removeHeader(b"Content-Type")  # so that twisted.web doesn't parse it again
        super().requestReceived(command, path, version)  # type: ignore[no-untyped-call]

    def process(self) -> None:
        """Add the form to the arguments, and find and render the resource."""
        if self._content_type:
            self.requestHeaders.setRawHeaders(b"Content-Type", [self._content_type])
            arguments: Any = self.args
            arguments.update(self._form)
        super().process()  # type: ignore[no-untyped-call]

    def processingFailed(self, reason: Failure) -> Failure:
        """Log an exception of the application, and answer without showing it.

        An answer that has begun is cut off, so that nobody takes it for complete.
        """
        assert reason.value is not None
        raised = Failure(describe(reason.value))
        channel = getattr(self, "channel", None)
        if channel is not None and self.startedWriting:
            channel.fail(raised)
            return reason
        site: Any = self.site
        site.report(raised, self._asked)
        if channel is not None:  # the peer waits for an answer
            if self._inFakeHead:  # the method was replaced, and writing does nothing
                self._inFakeHead, self.method = False, b"HEAD"
            self.setResponseCode(http.INTERNAL_SERVER_ERROR)
            self.responseHeaders.setRawHeaders(b"Content-Type", [b"text/plain"])
            self.responseHeaders.setRawHeaders(b"Content-Length", [b"%d" % len(_FAILED)])
            answer: Any = self
            answer.write(_FAILED)
            answer.finish()
        return reason


class ResourceSite(server.Site):
    """The site of a resource: its sessions, and the way to each resource.

    :param clock: for the end of sessions.
    :param resource: the root.
    """

    requestFactory = ResourceRequest

    _reports_log = Logger()

    def __init__(self, clock: IReactorTime, resource: IResource) -> None:
        super().__init__(resource, reactor=clock)  # type: ignore[no-untyped-call]
        self._reports = Reports(self._reports_log)

    def report(self, failure: Failure, asked: Request) -> None:
        """Log that a request failed."""
        if not isinstance(failure.value, UwsgiError):
            assert failure.value is not None
            failure = Failure(describe(failure.value))
        self._reports.failed(failure, asked)

    def getResourceFor(self, request: Any) -> Any:
        """Return the resource of a request, whose path begins where the resource is mounted."""
        mount = request.channel.web.mount
        request.prepath, request.postpath = request.postpath[:mount], request.postpath[mount:]
        return super().getResourceFor(request)  # type: ignore[no-untyped-call]
