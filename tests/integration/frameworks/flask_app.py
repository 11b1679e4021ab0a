"""A Flask application as people write them, with a factory: ``flask_app:create_app()``."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator

from flask import Flask, Response, jsonify, request, send_file, session, url_for
from werkzeug.wrappers import Response as BaseResponse


def create_app() -> Flask:
    """Make the application."""
    made = Flask(__name__)
    made.secret_key = "for the tests"
    add_views(made)
    return made


def add_views(app: Flask) -> None:
    """Give the application its views."""

    @app.get("/hello/<name>")
    def hello(name: str) -> str:
        return f"Hello, {name}! {url_for('hello', name='ä b', _external=True)}"

    @app.post("/upload")
    def upload() -> BaseResponse:
        files = {name: hashlib.sha256(file.read()).hexdigest() for name, file in request.files.items()}
        return jsonify(fields=request.form.to_dict(), files=files)

    @app.post("/raw")
    def raw() -> BaseResponse:
        return jsonify(size=len(request.get_data()))

    @app.get("/count")
    def count() -> str:
        session["count"] = session.get("count", 0) + 1
        return str(session["count"])

    @app.get("/lines")
    def lines() -> Response:
        def numbers() -> Iterator[str]:
            for number in range(1_000):
                yield f"{number}\n"

        return Response(numbers(), mimetype="text/plain")

    @app.get("/file")
    def file() -> BaseResponse:
        return send_file(io.BytesIO(bytes(200_000)), "application/x-file")

    @app.get("/error")
    def error() -> str:
        raise ValueError("the secret of the application")
