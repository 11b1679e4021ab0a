"""Templates (modifier1 33): renders the template that a request names, with the variables that it sends.

A request is the marshalled pair ``(name, variables)``; its answer is the marshalled text. In the template,
``attributes`` is the dict of the variables, as in existing uWSGI code (``${attributes['title']}``). A variable
whose name the engine doesn't need is also available by its name (``${title}``).

A request may also be a list of such pairs. Its answer is the list of the pages, each as a pair ``(True, text)``
or ``(False, error)``: a page that fails has no effect on the others.

An engine loads this module, in a worker process or in the reactor's own process.
"""

from __future__ import annotations

import atexit
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from uwsgitwisted.errors import MisuseError, UwsgiError
from uwsgitwisted.wire.objects import loads
from uwsgitwisted.wire.packet import MARSHAL, Packet
from uwsgitwisted.wire.python2 import to_text
from uwsgitwisted.worker.compat.requests import requests
from uwsgitwisted.worker.handlers import pages, render_rpc
from uwsgitwisted.worker.handlers.handler import Handler
from uwsgitwisted.worker.spec import HandlerTable
from uwsgitwisted.worker.templates.directories import name_from
from uwsgitwisted.worker.templates.keeping import MAY_KEEP, encode
from uwsgitwisted.worker.templates.renderer import Renderer, RenderSettings

#: What callers get a page as, by the values of ``--answer``, and the type codes of marshal for them.
ANSWERS: Mapping[str, bytes] = {"text": b"u", "bytes": b"s"}

#: How many pages a request may ask for. Each has an error at least, of up to some hundred bytes.
MAX_PAGES = 100_000
_NO_ROOM = b"the pages before it take all that --max-output allows"

#: A page that is asked for.
Asked = tuple[str, Mapping[Any, object]]


def load(
    directories: Sequence[str],
    *,
    answer: str = "text",
    python2: str = "",
    web: bool = False,
    debug: bool = False,
    max_kept: int = 0,
    **settings: Any,
) -> HandlerTable:
    """Return the handlers that render templates, by modifier1: for objects, and for RPC.

    :param directories: the directories of the templates.
    :param answer: one of :data:`ANSWERS`.
    :param python2: the encoding of the text of Python 2 callers; empty to leave values bytes.
    :param web: whether to answer web requests too; that needs a worker process.
    :param debug: whether those get a page about a template that failed.
    :param max_kept: how many bytes a page may have that the front may keep, with what it was made from; 0 if
        the front keeps none.
    :param settings: the other fields of :class:`RenderSettings`.
    :raises StartupError: if a renderer can't be made of them.
    """
    renderer = Renderer(RenderSettings(directories, **settings))
    if renderer.caches:
        atexit.register(_report, renderer)
    handlers: HandlerTable = {**table(renderer, answer, python2, max_kept), **render_rpc.table(renderer)}
    return {**handlers, **pages.table(renderer, debug=debug)} if web else handlers


def table(renderer: Renderer, answer: str = "text", python2: str = "", max_kept: int = 0) -> dict[int, Handler]:
    """Return the handler of a renderer, by modifier1."""
    objects = Objects(renderer, ANSWERS[answer], python2, max_kept)
    return {MARSHAL: Handler(objects.trace if max_kept else objects.run, objects.answer, objects.read)}


def _report(renderer: Renderer) -> None:
    """Log the figures of the result cache of HTTP and RPC when the worker ends."""
    print(f"result cache, HTTP and RPC: {renderer.statistics}", file=sys.stderr, flush=True)


class Kept(NamedTuple):
    """An answer that the front may keep; see :mod:`~uwsgitwisted.worker.templates.keeping`."""

    payload: bytes


class Objects:
    """Answers requests that are objects.

    :param renderer: renders.
    :param code: the type code of marshal for a page.
    :param python2: the encoding of the text of Python 2 callers; empty to leave values bytes.
    :param max_kept: how many bytes an answer may have that the front may keep.
    """

    def __init__(self, renderer: Renderer, code: bytes, python2: str = "", max_kept: int = 0) -> None:
        self._python2 = python2
        self._max_kept = max_kept
        self._renderer = renderer
        self._code = code
        self._read = 0

    def read(self, request: Packet) -> Asked | list[object]:
        """Decode *request*; return the template's name and the variables, or a list of pages.

        :raises UnsafeObject: if the payload is not a plain marshalled object.
        :raises MisuseError: as :func:`read_request`.
        """
        message = loads(request.payload)
        return read_request(to_text(message, self._python2) if self._python2 else message)

    def run(self, asked: Asked | list[object]) -> bytes:
        """Render what is asked for; return the marshalled answer."""
        self._begin()
        if isinstance(asked, list):
            return self._many(asked)
        return self._marshalled(self._renderer.render(*asked))

    def trace(self, asked: Asked | list[object]) -> bytes | Kept:
        """Render what is asked for; return the marshalled answer, and what a page was made from."""
        self._begin()
        if isinstance(asked, list):
            return self._many(asked)
        text, files = self._renderer.trace(*asked)
        answer = self._marshalled(text)
        if files is None or (self._renderer.reload and not all(file.settled for file in files.values())):
            return answer
        kept = encode(files.values(), answer)
        return Kept(kept) if len(kept) <= self._max_kept else answer

    def _begin(self) -> None:
        """Have the files looked at again, once for all requests that have arrived together.

        A caller who has changed a file before asking has asked after the others were there.
        """
        read = requests.read
        if not read or read != self._read:
            self._read = read
            self._renderer.begin()

    def answer(self, request: Packet, result: object) -> Packet:
        """Return the answer to *request*."""
        if isinstance(result, Kept):
            return Packet(MAY_KEEP, request.modifier2, result.payload)
        assert isinstance(result, bytes)
        return Packet(MARSHAL, request.modifier2, result)

    def _marshalled(self, text: bytes) -> bytes:
        return self._code + len(text).to_bytes(4, "little") + text

    def _many(self, messages: list[object]) -> bytes:
        """Render many pages; their texts and errors together have as many bytes as one page may have."""
        answers = [b"[" + len(messages).to_bytes(4, "little")]
        left = self._renderer.max_output
        for message in messages:
            code, text = self._one(message) if left > 0 else (_FAILED, _NO_ROOM)
            if len(text) > left:
                code, text, left = _FAILED, _NO_ROOM, 0
            left -= len(text)
            answers += code, self._marshalled(text)
        return b"".join(answers)

    def _one(self, message: object) -> tuple[bytes, bytes]:
        """Render a page of many; return the beginning of its pair, and its text or that of its error."""
        try:
            return _DONE, self._renderer.render(*read_page(message))
        except UwsgiError as error:
            return _FAILED, str(error).encode("utf-8", "backslashreplace")


#: How marshal begins a tuple of two values, of which the first is True or False.
_DONE, _FAILED = b"(\x02\0\0\0T", b"(\x02\0\0\0F"


def read_request(message: object) -> Asked | list[object]:
    """Return what a request's object asks for: a page, or a list of what :func:`read_page` takes.

    :raises MisuseError: if *message* is neither, or has too many pages; what is wrong in a list is an error of
        that page.
    :raises TemplateRefused: if the name of a single page is not text.
    """
    if type(message) is tuple and len(message) == 2 and type(message[0]) is str:  # nearly all requests
        return read_page(message)
    if isinstance(message, list) and not message:
        return []
    if not isinstance(message, (tuple, list)) or not message or not isinstance(message[0], (tuple, list)):
        return read_page(message)
    if not all(isinstance(part, (tuple, list)) for part in message):
        return read_page(message)
    pages: list[object] = list(message)
    if len(pages) > MAX_PAGES:
        raise MisuseError(f"a request for {len(pages)} pages; one may have at most {MAX_PAGES}")
    return pages


def read_page(message: object) -> Asked:
    """Return the template's name and the variables in a pair.

    Python 2 peers send text as bytes, so the name and the keys are decoded. Keys that are not UTF-8 stay bytes.
    Values are left to the template.

    :raises MisuseError: if *message* is not a pair of a name and a dict (or None for no variables).
    :raises TemplateRefused: if the name is not text.
    """
    if not isinstance(message, (tuple, list)) or len(message) != 2:
        raise MisuseError(
            "a request to render is the pair (name, variables), such as ('mail/welcome.txt', {'user': 'Ann'}), "
            f"or a list of such pairs, not {_describe(message)}"
        )
    name, variables = message
    if variables is None:
        variables = {}
    if not isinstance(variables, dict):
        raise MisuseError(
            f"a template's variables are a dict, or None for none, not {_describe(variables)}; the template "
            "finds the dict in 'attributes'"
        )
    if bytes in map(type, variables):
        variables = {_decoded(key): value for key, value in variables.items()}
    return name_from(name), variables


def _decoded(key: object) -> object:
    if not isinstance(key, bytes):
        return key
    try:
        return key.decode()
    except UnicodeDecodeError:
        return key


def _describe(value: object) -> str:
    kind = type(value).__name__
    return f"a {kind} of {len(value)}" if isinstance(value, (tuple, list, dict)) else f"a {kind}"
