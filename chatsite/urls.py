"""Which room answers which path."""

from django.contrib import admin
from django.urls import URLPattern, URLResolver, include, path

from accounts.views import admin_log_in, password
from chatsite import health

admin.site.site_header = admin.site.site_title = "Chatsite"
admin.site.index_title = "Administration"

handler400 = "chatsite.errors.bad_request"
handler403 = "chatsite.errors.permission_denied"
handler404 = "chatsite.errors.not_found"
handler500 = "chatsite.away.server_error"

urlpatterns: list[URLPattern | URLResolver] = [
    path("", include("chats.urls")),
    path("accounts/", include("accounts.urls")),
    path("admin/login/", admin_log_in),  # the one log-in there is, with its limits
    path("admin/password_change/", password),  # as is this
    path("admin/", admin.site.urls),
    path("livez", health.livez, name="livez"),
    path("readyz", health.readyz, name="readyz"),
    path("metrics", health.metrics, name="metrics"),
]
