"""Pages: reading only. What changes something is in writes.py."""

from typing import Any
from uuid import UUID, uuid4

from django.conf import settings
from django.core.exceptions import ValidationError
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_safe

from chats import sidebar, transcript
from chats.models import Chat, Message
from inference import router
from inference.models import Release


@require_safe
@never_cache
def home(request: HttpRequest) -> HttpResponse:
    """A new chat; nothing is stored before the first send."""
    return render_home(request)


@require_safe
@never_cache
def chat(request: HttpRequest, chat_id: UUID) -> HttpResponse:
    return render_chat(request, find_chat(request, chat_id), before=_before(request, chat_id))


@require_GET
@never_cache
def show_transcript(request: HttpRequest, chat_id: UUID) -> HttpResponse:
    """The rows and waiting messages alone, for a page that is open already."""
    found = find_chat(request, chat_id)
    context = _transcript(found, _before(request, chat_id))
    return render(request, "chats/_transcript.html", {"client_id": uuid4(), **context})


@require_safe
@never_cache
def details(request: HttpRequest, message_id: UUID) -> HttpResponse:
    """How an answer was made: a page, or with ?fragment=1 what a dialog shows of it."""
    run = ("generation__release__model", "generation__prompt")
    context = {"message": find_answer(request, message_id, *run), "client_id": uuid4()}
    template = "chats/_details.html" if request.GET.get("fragment") else "chats/details.html"
    return render(request, template, context)


def list_chats(request: HttpRequest) -> HttpResponse:
    """The list as a page, or with ?fragment=1 as the part of the sidebar that changes."""
    cursor = request.GET.get("before", "")
    template = "chats/_sidebar_list.html" if request.GET.get("fragment") else "chats/list.html"
    return render(request, template, {"client_id": uuid4(), **_sidebar(request, cursor)})


def render_home(request: HttpRequest, status: int = 200, **context: Any) -> HttpResponse:
    return _page(request, "chats/home.html", {"chat": None, "rows": [], **context}, status)


def render_chat(
    request: HttpRequest,
    found: Chat,
    status: int = 200,
    before: Message | None = None,
    **context: Any,
) -> HttpResponse:
    context = {**_transcript(found, before), **context}
    return _page(request, "chats/chat.html", context, status)


def find_chat(request: HttpRequest, chat_id: UUID) -> Chat:
    return get_object_or_404(Chat.objects.visible_to(request.user), pk=chat_id)


def find_answer(request: HttpRequest, message_id: UUID, *related: str) -> Message:
    answers = Message.objects.visible_to(request.user).filter(role=Message.Role.ASSISTANT)
    return get_object_or_404(answers.select_related("chat", *related), pk=message_id)


def _page(request: HttpRequest, template: str, context: Any, status: int) -> HttpResponse:
    arms = Release.objects.arms(settings.MODEL)
    release = router.choose(arms, request.user)
    shared = {
        "release": release,
        # Of all arms: a guest who is none yet may get any of them.
        "stays_here": all(arm.engine != "upstream" for arm in arms),
        "model": release.model if release else None,
        "client_id": uuid4(),
        "composer_text": "",
        "composer_error": "",
        **_sidebar(request),
    }
    return render(request, template, {**shared, **context}, status=status)


def _transcript(found: Chat, before: Message | None) -> dict[str, Any]:
    rows = transcript.rows(found, before)
    return {
        "chat": found,
        "rows": rows,
        "pending": list(found.pending.all()),
        "older_before": transcript.older_before(rows),
    }


def _before(request: HttpRequest, chat_id: UUID) -> Message | None:
    """The message named by ?before=, which must be of this chat."""
    named = request.GET.get("before")
    if not named:
        return None
    try:
        return get_object_or_404(Message.objects.visible_to(request.user), chat=chat_id, pk=named)
    except ValidationError as error:
        raise Http404 from error


def _sidebar(request: HttpRequest, cursor: str = "") -> dict[str, Any]:
    try:
        page = sidebar.page(request.user, cursor)
    except ValueError as error:
        raise Http404 from error
    return {"sidebar": page.groups, "sidebar_before": page.before}
