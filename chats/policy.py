"""The decorators of every write: methods, rate limit, and refusals in the client's shape."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any
from uuid import UUID

from django.db import transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods

from accounts.limits import limited, wait_in_words, wants_json
from accounts.models import User
from chats.models import Chat, Message
from chats.pending import PendingMessage
from chats.refusals import RateLimited, Refusal, TooBusy, TooManyRuns
from chats.views import render_chat, render_home
from inference import fairness
from inference.models import Generation, Release

View = Callable[..., HttpResponse]
STATUS = {
    "client_id_reused": HTTPStatus.CONFLICT,
    "busy": HTTPStatus.CONFLICT,
    "rate_limited": HTTPStatus.TOO_MANY_REQUESTS,
    "too_many_runs": HTTPStatus.TOO_MANY_REQUESTS,
    "no_model": HTTPStatus.SERVICE_UNAVAILABLE,
    "too_busy": HTTPStatus.SERVICE_UNAVAILABLE,
}


def write(*methods: str, limit: str = "change") -> Callable[[View], View]:
    """A view that changes something: these methods only, refusals as JSON or as the page again.

    `limit`: what counts each of them; none where the view counts by itself, or may not refuse.
    """

    def decorate(view: View) -> View:
        @require_http_methods(list(methods))
        @never_cache
        @functools.wraps(view)
        def wrapped(request: HttpRequest, **ids: UUID) -> HttpResponse:
            try:
                if limit and request.method not in ("GET", "HEAD"):
                    _count(request, limit)
                return view(request, **ids)
            except Refusal as refusal:
                return _refused(request, refusal, ids)

        return wrapped

    return decorate


@contextlib.contextmanager
def admitted(request: HttpRequest, is_repeat: Callable[[], bool]) -> Iterator[Release | None]:
    """Count a send against its limits, and let it be stored before this person's next is looked at.

    The repeat of one that was taken is never refused. Gives what serves this person, if it was
    asked for.
    """
    release, refused = None, (RateLimited, TooBusy, TooManyRuns)
    with contextlib.ExitStack() as stack:
        try:
            _count_send(request)
            release = stack.enter_context(room(request))
        except refused:
            if not is_repeat():
                raise
        yield release


@contextlib.contextmanager
def room(request: HttpRequest) -> Iterator[Release | None]:
    """A transaction for one more answer. Gives what serves this person.

    Raises TooBusy when as many wait as may, TooManyRuns when as many are this person's. What a
    chat holds back was admitted before. Who has no account has nothing under way, and becomes a
    guest beside the transaction.
    """
    if not request.user.is_authenticated:
        yield _require_room(None)
        return
    with transaction.atomic():
        if request.user.concurrent_runs:
            request.user.lock()
        yield _require_room(request.user)


def _require_room(person: User | None) -> Release | None:
    release = Release.objects.serving(person)
    try:
        if release is not None:
            fairness.require_room(Generation.objects.all(), release, person)
    except fairness.TooManyUnderWay as full:
        raise TooManyRuns(full.retry_after) from None
    except fairness.QueueFull as full:
        raise TooBusy(full.retry_after, wait_in_words(full.retry_after)) from None
    return release


def _count_send(request: HttpRequest) -> None:
    """Count a send, by person; guests of one address also count together. Raises RateLimited."""
    _count(request, "send")
    if not _is_member(request):
        _count(request, "send_address", account="*")


def _count(request: HttpRequest, limit: str, account: str = "") -> None:
    """Raises RateLimited."""
    if seconds := limited(request, limit, account=account):
        raise RateLimited(seconds, wait_in_words(seconds))


def _is_member(request: HttpRequest) -> bool:
    return request.user.is_authenticated and not getattr(request.user, "is_guest", True)


def is_known(request: HttpRequest, client_id: UUID, held_in: UUID | None = None) -> bool:
    """Whether this send was taken before.

    held_in: the chat in which it may be waiting; one that waits elsewhere is no repeat of it.
    """
    user = request.user
    if not user.is_authenticated:
        return False
    held = PendingMessage.objects.filter(chat=held_in) if held_in else PendingMessage.objects.none()
    return Message.objects.knows(user, client_id) or held.knows(user, client_id)


def error(status: int, code: str, sentence: str, retry_after: int | None = None) -> JsonResponse:
    body: dict[str, Any] = {"code": code, "message": sentence}
    if retry_after is not None:
        body["retry_after"] = retry_after
    return JsonResponse({"error": body}, status=status)


def _refused(request: HttpRequest, refusal: Refusal, ids: dict[str, UUID]) -> HttpResponse:
    status = STATUS.get(refusal.code, HTTPStatus.BAD_REQUEST)
    response: HttpResponse
    if wants_json(request):
        response = error(status, refusal.code, refusal.sentence, refusal.retry_after)
    else:
        response = _page_again(request, status, refusal, ids)
    if refusal.retry_after is not None:
        response["Retry-After"] = str(refusal.retry_after)
    return response


def _page_again(
    request: HttpRequest, status: int, refusal: Refusal, ids: dict[str, UUID]
) -> HttpResponse:
    text = request.POST.get("text", "").replace("\0", "")
    context: dict[str, Any] = {"composer_text": text, "composer_error": refusal.sentence}
    chat = _chat_of(request, ids)
    if chat is None:
        return render_home(request, status=status, **context)
    return render_chat(request, chat, status=status, **context)


def _chat_of(request: HttpRequest, ids: dict[str, UUID]) -> Chat | None:
    chats = Chat.objects.visible_to(request.user)
    if "chat_id" in ids:
        return chats.filter(pk=ids["chat_id"]).first()
    if "message_id" in ids:
        return chats.filter(messages=ids["message_id"]).first()
    if "pending_id" in ids:
        return chats.filter(pending=ids["pending_id"]).first()
    return None
