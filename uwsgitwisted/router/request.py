"""One request of a client: where it goes, and what the client gets."""

# mypy: disable-error-code="no-untyped-call"
# Most of Twisted's Request has no annotations.

from __future__ import annotations

import math
from http import HTTPStatus
from typing import TYPE_CHECKING

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IAddress, IPushProducer
from twisted.logger import LogLevel
from twisted.python.failure import Failure
from twisted.web.http import CACHED, NO_CONTENT, NOT_MODIFIED, Request, datetimeToString
from twisted.web.iweb import INonQueuedRequestFactory
from zope.interface import implementer, provider

from uwsgitwisted.errors import MalformedRequest, UwsgiError
from uwsgitwisted.files import Part, parse_range
from uwsgitwisted.router.bodies import Body, FileSender, SpooledBody, StreamedBody
from uwsgitwisted.router.forwarding import Forwarding, Outgoing
from uwsgitwisted.router.nodes import RoutedNode
from uwsgitwisted.router.static import OpenFile, StaticFiles
from uwsgitwisted.transport.client.web import WebProtocol
from uwsgitwisted.wire.http import AnswerHead
from uwsgitwisted.wire.web import WebRequest, parse_target

if TYPE_CHECKING:
    from uwsgitwisted.router.channel import RouterChannel

_READING = (b"GET", b"HEAD")
#: The status in the access log of a request whose client has gone before its answer began, as in nginx's.
_CLIENT_GONE = 499
#: The headers in the access log, by the names of their variables.
_LOGGED = {"HTTP_REFERER": b"Referer", "HTTP_USER_AGENT": b"User-Agent"}
#: How much of a request's target is logged.
_SHOWN = 200
#: The ports of connections that have none, such as those of UNIX sockets.
_PORTS = {b"http": b"80", b"https": b"443"}


def _host_and_port(address: IAddress) -> tuple[bytes, bytes]:
    """Return an address as nginx writes it."""
    if isinstance(address, (IPv4Address, IPv6Address)):
        return address.host.encode(), b"%d" % address.port
    return b"unix:", b""


@provider(INonQueuedRequestFactory)
class RoutedRequest(Request):
    """A request, which goes to a node, or is answered here: a static file, or an error."""

    channel: RouterChannel

    def __init__(self, channel: RouterChannel) -> None:
        super().__init__(channel)
        self._shared = channel.shared
        self._peer = channel.peer
        self._web: WebRequest | None = None
        self._spooled: SpooledBody | None = None
        self._streamed: StreamedBody | None = None
        self._forwarding: Forwarding | None = None
        self._file: _Sending | None = None
        self._began: float | None = None

    # What Twisted's channel calls

    def begin(self, method: bytes, uri: bytes, version: bytes) -> None:
        """Handle the request line; the headers have come as well."""
        self.method, self.uri, self.clientproto = method, uri, version
        self._began = self._shared.clock.seconds()

    def parseCookies(self) -> None:
        """Do nothing: the node does."""

    def gotLength(self, length: int | None) -> None:
        """Start a request with a body before the body has come; *length* is None if its size is unknown."""
        if length == 0:
            return
        web = self._understand()
        if web is None:
            return
        settings = self._shared.settings
        if length is not None and length > settings.max_body:
            self._refuse_body()
        elif length is None or length <= settings.buffer_body:
            self._spooled = SpooledBody(self._shared.spooled.account(self._peer.group))
        else:
            self._streamed = StreamedBody(length, self.channel.read_body)
            self._route(web, self._streamed)

    def handleContentChunk(self, data: bytes) -> None:
        """Handle a piece of the body."""
        if self.finished:
            return
        if self._streamed is not None:
            self._streamed.receive(data)
        elif self._spooled is not None:
            self._spool(self._spooled, data)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """Handle the end of the request, and start one that has waited for its end."""
        if self.finished or self._streamed is not None:
            return
        web = self._web or self._understand()
        if web is not None:
            self._route(web, self._spooled or StreamedBody(0, self.channel.read_body))

    def connectionLost(self, reason: Failure) -> None:
        """Stop: the client is gone."""
        self._release()
        self.log_access(self.code if self.startedWriting else _CLIENT_GONE)
        super().connectionLost(reason)

    # Where it goes

    def _understand(self) -> WebRequest | None:
        scheme = b"https" if self.channel.isSecure() else b"http"
        try:
            self._web = WebRequest(
                method=self.method,
                target=parse_target(self.uri),
                protocol=self.clientproto,
                headers=list(self.requestHeaders.getAllRawHeaders()),
                scheme=scheme,
                remote=_host_and_port(self._peer.address),
                port=_host_and_port(self.channel.getHost())[1] or _PORTS[scheme],
                trusted=self._shared.trusts(self._peer),
            )
            self._web.check()
        except MalformedRequest as error:
            text = str(error)
            self.refuse(HTTPStatus.BAD_REQUEST, f"{text[:1].upper()}{text[1:]}.")
            return None
        return self._web

    def _route(self, web: WebRequest, body: Body) -> None:
        for files in self._shared.settings.static:
            name = files.name_of(web.target.path)
            if name is not None:
                self._send_static(files, name)
                return
        # Twisted accepts heads of 16 KB. No part of them is there more than three times, so the variables fit.
        packet = web.encode(body.size)
        self._forwarding = Forwarding(
            self._shared.clock,
            self._shared.nodes,
            self,
            Outgoing(web.method, packet, body),
            group=self._peer.group,
            timeout=self._shared.settings.timeout,
        )
        self._forwarding.start()

    def _spool(self, body: SpooledBody, data: bytes) -> None:
        if body.size + len(data) > self._shared.settings.max_body:
            self._refuse_body()
            return
        try:
            has_room = body.add(data)
        except OSError as error:
            self._shared.reports.report("spool", "a request's body can't be kept: {error}", error=error)
            has_room = False
        if not has_room:
            self.refuse(HTTPStatus.SERVICE_UNAVAILABLE, "There is no room for the request now.", retry_after=1)

    def _refuse_body(self) -> None:
        limit = self._shared.settings.max_body
        self.refuse(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The body of the request has more than {limit} bytes."
        )

    # What the client gets

    def answer_began(self, head: AnswerHead, producer: WebProtocol) -> None:
        """Send the head of a node's answer."""
        self.setResponseCode(head.status, head.reason or None)
        for name, value in head.headers:
            self.responseHeaders.addRawHeader(name, value)
        if head.length is not None and head.status != NO_CONTENT:
            self.responseHeaders.setRawHeaders(b"Content-Length", [b"%d" % head.length])
        self._add_date()
        self.registerProducer(producer, True)
        self.write(b"")

    def answer_received(self, data: bytes) -> None:
        """Send a piece of its body."""
        self.write(data)

    def answer_ended(self) -> None:
        """Note that the client has got all of it."""
        self.unregisterProducer()
        self.finish()

    def answer_cut(self) -> None:
        """Reset the connection, so that the client notices that the rest is missing."""
        self.unregisterProducer()
        self.channel.abort()

    def finish(self) -> None:
        """Release what the request holds, and go on with the connection."""
        self._release()
        super().finish()

    def log_access(self, status: int) -> None:
        """Write the request to the access log, once it is known what it is."""
        if self._began is None:
            return
        variables = {
            "REMOTE_ADDR": self._peer.host,
            "REQUEST_METHOD": self.method.decode("latin-1"),
            "REQUEST_URI": self.uri.decode("latin-1"),
            "SERVER_PROTOCOL": self.clientproto.decode("latin-1"),
        }
        for name, header in _LOGGED.items():
            variables[name] = (self.requestHeaders.getRawHeaders(header) or [b""])[0].decode("latin-1")
        self._shared.log_access(variables, status, self.sentLength, self._shared.clock.seconds() - self._began)

    def _release(self) -> None:
        if self._forwarding is not None:
            self._forwarding.stop()
        if self._file is not None:
            self._file.close()
        for body in (self._spooled, self._streamed):
            if body is not None:
                body.close()
        self._forwarding = self._file = self._spooled = None

    def node_failed(self, node: RoutedNode, error: UwsgiError) -> None:
        """Log that a node has failed; a few lines for each kind."""
        self._shared.reports.report(
            (node.name, type(error)),
            "{peer}: {method} {uri}: node {node}: {error}",
            level=LogLevel.warn,
            peer=self._peer,
            method=self.method.decode("latin-1"),
            uri=self.uri[:_SHOWN].decode("latin-1"),
            node=node.name,
            error=error,
        )

    def refuse(self, status: HTTPStatus, text: str, *, retry_after: float | None = None) -> None:
        """Answer with an error.

        :param text: what happened, for people.
        :param retry_after: seconds after which the client should try again.
        """
        self.requestHeaders.removeHeader(b"Expect")  # the client needn't send a body any more
        page = f"{status.value} {status.phrase}\n\n{text}\n".encode()
        self.setResponseCode(status)
        self._describe("text/plain; charset=utf-8", len(page))
        if retry_after is not None:
            self.setHeader(b"Retry-After", b"%d" % max(1, math.ceil(retry_after)))
        self.write(page)
        self.finish()

    def _describe(self, content_type: str, size: int) -> None:
        self.setHeader(b"Content-Type", content_type.encode())
        self.setHeader(b"Content-Length", b"%d" % size)
        self._add_date()

    def _add_date(self) -> None:
        if not self.responseHeaders.hasHeader(b"Date"):
            self.setHeader(b"Date", datetimeToString())

    # Static files

    def _send_static(self, files: StaticFiles, name: bytes) -> None:
        if self.method not in _READING:
            self.setHeader(b"Allow", b"GET, HEAD")
            self.refuse(HTTPStatus.METHOD_NOT_ALLOWED, "This is a file; it can only be read.")
            return
        opened = files.open(name)
        if opened is None:
            self.refuse(HTTPStatus.NOT_FOUND, "There is no such file.")
            return
        self._file = _Sending(opened)
        self.setHeader(b"Accept-Ranges", b"bytes")
        if self.setLastModified(opened.modified) is CACHED:
            self.setResponseCode(NOT_MODIFIED)
            self._add_date()
            self.finish()
            return
        try:
            part = self._part(opened)
        except ValueError:
            self.setHeader(b"Content-Range", b"bytes */%d" % opened.size)
            self.refuse(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "The file has no such bytes.")
            return
        self._send_file(self._file, part)

    def _part(self, opened: OpenFile) -> Part:
        """Return the part of the file that the client wants.

        :raises ValueError: if there is no such part.
        """
        if_range = self.getHeader(b"If-Range")
        ranges = self.requestHeaders.getRawHeaders(b"Range") or [b""]
        part = None
        if if_range in (None, datetimeToString(opened.modified)):
            part = parse_range(ranges[0], opened.size)
        if part is None:
            return Part(0, opened.size)
        self.setResponseCode(HTTPStatus.PARTIAL_CONTENT)
        last = part.start + part.size - 1
        self.setHeader(b"Content-Range", b"bytes %d-%d/%d" % (part.start, last, opened.size))
        return part

    def _send_file(self, sending: _Sending, part: Part) -> None:
        self._describe(sending.opened.content_type, part.size)
        self.write(b"")
        if self.method == b"HEAD":
            self.finish()
            return
        sending.start(part, self)
        self.registerProducer(sending, True)
        sending.resumeProducing()

    def file_sent(self, whole: bool) -> None:
        """Handle the end of a file, which may have become shorter meanwhile."""
        (self.answer_ended if whole else self.answer_cut)()


@implementer(IPushProducer)
class _Sending:
    """Sends a file to a client.

    :param opened: the file.
    """

    def __init__(self, opened: OpenFile) -> None:
        self.opened = opened
        self._sender: FileSender | None = None

    def start(self, part: Part, request: RoutedRequest) -> None:
        """Get ready to send a part of the file."""
        self.opened.file.seek(part.start)
        self._sender = FileSender(self.opened.file, part.size, request.answer_received, request.file_sent)

    def pauseProducing(self) -> None:
        """Wait: the client doesn't read."""
        if self._sender is not None:
            self._sender.pause()

    def resumeProducing(self) -> None:
        """Go on."""
        if self._sender is not None:
            self._sender.resume()

    def stopProducing(self) -> None:
        """Do nothing: the request's ``connectionLost`` is called too."""

    def close(self) -> None:
        """Close the file."""
        if self._sender is not None:
            self._sender.stop()
        self.opened.file.close()
