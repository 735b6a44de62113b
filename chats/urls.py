"""Every address of the product; each finds its rows through `visible_to` or answers 404."""

from django.urls import path

from chats import views, writes

urlpatterns = [
    path("", views.home, name="home"),
    path("chats/", writes.chats, name="chats"),
    path("chats/<uuid:chat_id>/", views.chat, name="chat"),
    path("chats/<uuid:chat_id>/transcript/", views.show_transcript, name="transcript"),
    path("chats/<uuid:chat_id>/messages/", writes.messages, name="messages"),
    path("chats/<uuid:chat_id>/branch/", writes.branch, name="branch"),
    path("chats/<uuid:chat_id>/title/", writes.title, name="title"),
    path("chats/<uuid:chat_id>/deletion/", writes.deletion, name="deletion"),
    path("messages/<uuid:message_id>/versions/", writes.versions, name="versions"),
    path("messages/<uuid:message_id>/continuation/", writes.continuation, name="continuation"),
    path("messages/<uuid:message_id>/details/", views.details, name="details"),
    path("generations/<uuid:generation_id>/", writes.generation, name="generation"),
    path("pending/<uuid:pending_id>/", writes.pending, name="pending"),
]
