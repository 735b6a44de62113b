"""Forms come whole and in UTF-8, or not at all."""

from collections.abc import Callable
from http import HTTPStatus

from django.http import HttpRequest, HttpResponse, JsonResponse, UnreadablePostError

from accounts.limits import wants_json

Answer = Callable[[HttpRequest], HttpResponse]


def utf8_only(answer: Answer) -> Answer:
    """Refuse a form in another character set: Django's own refusal of one ends in an error."""

    def middleware(request: HttpRequest) -> HttpResponse:
        charset = request.content_params.get("charset", "utf-8") if request.content_params else ""
        if charset and charset.lower() != "utf-8":
            sentence = "Forms are read in UTF-8 only."
            return _refused(request, "bad_text", sentence, HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
        return answer(request)

    return middleware


def whole_only(answer: Answer) -> Answer:
    """Refuse a form that broke off: it may be half of a sentence, without the id of its send."""

    def middleware(request: HttpRequest) -> HttpResponse:
        is_form = request.content_type == "application/x-www-form-urlencoded"
        if is_form and not _is_whole(request):
            return _refused(request, "broken_off", "The form broke off.", HTTPStatus.BAD_REQUEST)
        return answer(request)

    return middleware


def _is_whole(request: HttpRequest) -> bool:
    try:
        return len(request.body) >= int(request.META.get("CONTENT_LENGTH") or 0)
    except (UnreadablePostError, ValueError):  # the line broke, or no number is told
        return False


def _refused(request: HttpRequest, code: str, sentence: str, status: HTTPStatus) -> HttpResponse:
    if wants_json(request):
        return JsonResponse({"error": {"code": code, "message": sentence}}, status=status)
    return HttpResponse(sentence, content_type="text/plain", status=status)
