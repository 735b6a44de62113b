"""Forms come in UTF-8 or not at all."""

from collections.abc import Callable
from http import HTTPStatus

from django.http import HttpRequest, HttpResponse, JsonResponse

from accounts.limits import wants_json

Answer = Callable[[HttpRequest], HttpResponse]


def utf8_only(answer: Answer) -> Answer:
    """Refuse a form in another character set: Django's own refusal of one ends in an error."""

    def middleware(request: HttpRequest) -> HttpResponse:
        charset = request.content_params.get("charset", "utf-8") if request.content_params else ""
        if charset and charset.lower() != "utf-8":
            return _refused(request)
        return answer(request)

    return middleware


def _refused(request: HttpRequest) -> HttpResponse:
    sentence, status = "Forms are read in UTF-8 only.", HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    if wants_json(request):
        return JsonResponse({"error": {"code": "bad_text", "message": sentence}}, status=status)
    return HttpResponse(sentence, content_type="text/plain", status=status)
