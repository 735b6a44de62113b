"""The asynchronous entry point: pages, static files and the WebSocket."""

import os
from typing import Any, cast

from a2wsgi import WSGIMiddleware
from a2wsgi.wsgi_typing import WSGIApp
from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chatsite.settings")
# Pages run as WSGI, here as in a cluster, in a few lasting threads. Django's own ASGI handler
# starts a thread and opens a database connection for every request (docs/architecture.md).
# This also sets Django up, for what follows.
wsgi = cast("WSGIApp", get_wsgi_application())
pages = cast("App", WSGIMiddleware(wsgi, workers=8))

from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from django.conf import settings  # noqa: E402
from django.urls import re_path  # noqa: E402
from servestatic import ServeStaticASGI  # noqa: E402

from chats.routing import websocket_urlpatterns  # noqa: E402
from chatsite.body import WholeBody  # noqa: E402
from chatsite.origin import App, SameOriginOnly, refuse  # noqa: E402

HASHED_NAME = r"^/static/.+\.[0-9a-f]{12}\.[^/]+$"

application = ServeStaticASGI(
    ProtocolTypeRouter(
        {
            "http": WholeBody(pages),
            "websocket": SameOriginOnly(
                URLRouter(
                    [*websocket_urlpatterns, re_path("", cast("Any", refuse))]
                )  # one address, no other
            ),
        }
    ),
    root=settings.STATIC_ROOT if settings.STATIC_ROOT.is_dir() else None,
    prefix=settings.STATIC_URL,
    immutable_file_test=HASHED_NAME,
    allow_all_origins=False,
    add_headers_function=lambda headers, path, url: headers.add_header(
        "X-Content-Type-Options", "nosniff"
    ),
)
