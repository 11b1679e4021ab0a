"""A Django application in one file: ``django_app:application``."""

from __future__ import annotations

import hashlib
import io

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import FileResponse, HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.urls import path, reverse

settings.configure(
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="for the tests",
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.common.CommonMiddleware",
    ],
    SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
    DATA_UPLOAD_MAX_MEMORY_SIZE=None,
)


def hello(request: HttpRequest, name: str) -> HttpResponseBase:
    """Greet."""
    there = request.build_absolute_uri(reverse(hello, args=["ä b"]))
    return HttpResponse(f"Hello, {name}! {there}")


def upload(request: HttpRequest) -> HttpResponseBase:
    """Tell the fields of a form, and the digests of its files."""
    files = {name: hashlib.sha256(file.read()).hexdigest() for name, file in request.FILES.items()}
    return JsonResponse({"fields": request.POST.dict(), "files": files})


def raw(request: HttpRequest) -> HttpResponseBase:
    """Tell the size of a body."""
    return JsonResponse({"size": len(request.body)})


def count(request: HttpRequest) -> HttpResponseBase:
    """Count a browser's requests."""
    request.session["count"] = request.session.get("count", 0) + 1
    return HttpResponse(str(request.session["count"]))


def lines(request: HttpRequest) -> HttpResponseBase:
    """Send lines one by one."""
    return StreamingHttpResponse((f"{number}\n" for number in range(1_000)), content_type="text/plain")


def file(request: HttpRequest) -> HttpResponseBase:
    """Send a file."""
    return FileResponse(io.BytesIO(bytes(200_000)), content_type="application/x-file")


def error(request: HttpRequest) -> HttpResponseBase:
    """Fail."""
    raise ValueError("the secret of the application")


urlpatterns = [
    path("hello/<str:name>", hello),
    path("upload", upload),
    path("raw", raw),
    path("count", count),
    path("lines", lines),
    path("file", file),
    path("error", error),
]

application = get_wsgi_application()
