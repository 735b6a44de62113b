"""The one socket address."""

from django.urls import path

from chats.consumers import ChatSocket

websocket_urlpatterns = [path("ws/", ChatSocket.as_asgi())]
