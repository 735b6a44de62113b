"""The asynchronous entry point: pages, static files and the WebSocket."""

import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chatsite.settings")
pages = get_asgi_application()  # sets Django up: everything below needs it

from channels.auth import AuthMiddlewareStack  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from chats.routing import websocket_urlpatterns  # noqa: E402
from django.conf import settings  # noqa: E402
from servestatic import ServeStaticASGI  # noqa: E402

from chatsite.origin import SameOriginOnly  # noqa: E402

HASHED_NAME = r"^/static/.+\.[0-9a-f]{12}\.[^/]+$"

application = ServeStaticASGI(
    ProtocolTypeRouter(
        {
            "http": pages,
            "websocket": SameOriginOnly(AuthMiddlewareStack(URLRouter(websocket_urlpatterns))),
        }
    ),
    root=settings.STATIC_ROOT if settings.STATIC_ROOT.is_dir() else None,
    prefix=settings.STATIC_URL,
    immutable_file_test=HASHED_NAME,
    allow_all_origins=False,
)
