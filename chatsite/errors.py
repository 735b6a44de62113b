"""Errors that no view has answered: Django's pages, or JSON for who asked for it."""

import functools
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views import csrf, defaults
from django.views.decorators.cache import never_cache

from accounts.limits import wants_json

View = Callable[..., HttpResponse]


def in_either_shape(page: View, status: HTTPStatus, code: str, sentence: str) -> View:
    """What `page` says, or {"error": {"code", "message"}} with the same status."""

    @never_cache  # the same address may be found once somebody has logged in
    @functools.wraps(page)
    def view(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if wants_json(request):
            return JsonResponse({"error": {"code": code, "message": sentence}}, status=status)
        return page(request, *args, **kwargs)

    return view


bad_request = in_either_shape(
    defaults.bad_request, HTTPStatus.BAD_REQUEST, "bad_request", "This request could not be read."
)
csrf_failure = in_either_shape(
    csrf.csrf_failure,
    HTTPStatus.FORBIDDEN,
    "csrf",
    "The form's token is missing or of another session. Load the page again.",
)
permission_denied = in_either_shape(
    defaults.permission_denied, HTTPStatus.FORBIDDEN, "forbidden", "You may not do that."
)
not_found = in_either_shape(
    defaults.page_not_found, HTTPStatus.NOT_FOUND, "not_found", "There is no such thing here."
)
something_went_wrong = in_either_shape(
    defaults.server_error,
    HTTPStatus.INTERNAL_SERVER_ERROR,
    "failed",
    "Something went wrong on the server. Please try again.",
)
