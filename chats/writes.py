"""Everything that changes a chat: asked by HTTP, answered with JSON or with the page."""

from contextlib import nullcontext
from http import HTTPStatus
from uuid import UUID

from django.contrib import messages as messages_framework
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from django.shortcuts import get_object_or_404
from django.template.loader import render_to_string
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods

from accounts.guests import person
from accounts.limits import wants_json
from chats import transcript
from chats.forms import ActionForm, BranchForm, MessageForm, TextForm, TitleForm, validated
from chats.models import Chat, Message
from chats.pending import PendingMessage
from chats.policy import admitted, is_known, room, write
from chats.refusals import NoModel
from chats.views import find_answer, find_chat, list_chats
from inference.models import Generation


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
def chats(request: HttpRequest) -> HttpResponse:
    """GET is the list, POST starts a chat."""
    return start(request) if request.method == "POST" else list_chats(request)


@write("POST", limit="")
def start(request: HttpRequest) -> HttpResponse:
    """A first question; a person without an account becomes a guest by it."""
    form = validated(MessageForm, request)
    with admitted(request, lambda: is_known(request, form["client_id"])) as release:
        is_new = not request.user.is_authenticated
        if is_new and release is None:
            raise NoModel  # before a guest is made for nothing
        chosen = None if is_new else release  # each person may get another
        answer = Chat.start(person(request), form["text"], form["client_id"], chosen)
    return _asked(request, answer)


@write("POST", limit="")
def messages(request: HttpRequest, chat_id: UUID) -> HttpResponse:
    """Ask in a chat: below an answer, or beside a question that is edited."""
    chat = find_chat(request, chat_id)
    form = validated(MessageForm, request)
    held_in = None if form["edits"] else chat.pk
    with admitted(request, lambda: is_known(request, form["client_id"], held_in)):
        made = _say(chat, **form)
    if isinstance(made, PendingMessage):
        return _held(request, made)
    return _asked(request, made)


@write("POST", limit="")
def versions(request: HttpRequest, message_id: UUID) -> HttpResponse:
    """Answer the same question again."""
    message = find_answer(request, message_id)
    client_id = validated(ActionForm, request)["client_id"]
    with admitted(request, lambda: is_known(request, client_id)):
        answer = message.regenerate(client_id)
    return _answered(request, answer)


@write("POST", limit="")
def continuation(request: HttpRequest, message_id: UUID) -> HttpResponse:
    """Go on with an answer that was cut short."""
    message = find_answer(request, message_id)
    client_id = validated(ActionForm, request)["client_id"]
    with admitted(request, lambda: message.continuation_id == client_id):
        answer = message.lengthen(client_id)
    return _answered(request, answer)


@write("POST")
def branch(request: HttpRequest, chat_id: UUID) -> HttpResponse:
    """Show another version of a message and what follows from it."""
    chat = find_chat(request, chat_id)
    named = validated(BranchForm, request)["message"]
    message = get_object_or_404(chat.messages, pk=named)
    chat.show(message)
    return _done(request, chat, fragment=f"#message-{message.pk}")


@write("POST")
def title(request: HttpRequest, chat_id: UUID) -> HttpResponse:
    chat = find_chat(request, chat_id)
    chat.rename(validated(TitleForm, request)["title"])
    return _done(request, chat)


@write("POST")
def deletion(request: HttpRequest, chat_id: UUID) -> HttpResponse:
    """Delete a chat, or with undo=1 bring it back."""
    own = Chat.objects.visible_to(request.user, deleted=True)
    chat = get_object_or_404(own, pk=chat_id)
    if request.POST.get("undo"):
        chat.restore()
        return _done(request, chat)
    if chat.deleted_at is None:
        chat.discard()
        if not wants_json(request):
            # _toast.html makes a button of it, which posts to this address.
            messages_framework.success(
                request,
                f"“{chat.name}” is deleted.",
                extra_tags=reverse("deletion", args=[chat.pk]),
            )
    return _done(request, chat, url=reverse("chats"))


@write("GET", "HEAD", "POST", "DELETE", limit="")  # a stop is never refused
def generation(request: HttpRequest, generation_id: UUID) -> HttpResponse:
    """GET says how far a run is; DELETE (or POST with _method=delete) stops it, durably."""
    run = get_object_or_404(Generation.objects.visible_to(request.user), pk=generation_id)
    if _is_delete(request):
        run.cancel()
        return _stopped(request, run)
    events = [] if not run.is_active else run.log.read(run.epoch, 0)
    text = "".join(event.text for event in events) if run.is_active else run.text
    seq = events[-1].seq if events else run.log_seq if not run.is_active else 0
    return JsonResponse({"status": run.status, "seq": seq, "epoch": run.epoch, "text": text})


@write("POST", "DELETE")
def pending(request: HttpRequest, pending_id: UUID) -> HttpResponse:
    """A waiting message: reword it, take it back, or have it asked now."""
    item = get_object_or_404(PendingMessage.objects.visible_to(request.user), pk=pending_id)
    if _is_delete(request):
        item.withdraw()
    elif request.POST.get("now"):
        leaf = item.chat.leaf
        # One that is being written ends for it.
        ends_one = leaf and leaf.is_answering
        with nullcontext() if ends_one else room(request):
            item.ask_now()
    else:
        item.reword(validated(TextForm, request)["text"])
    return _done(request, item.chat)


def _say(
    chat: Chat, text: str, client_id: UUID, edits: UUID | None, parent: UUID | None
) -> Message | PendingMessage:
    if edits is None:
        return chat.ask(text, client_id, _parent(chat, parent))
    return get_object_or_404(chat.messages, pk=edits, role=Message.Role.USER).edit(text, client_id)


def _parent(chat: Chat, pk: UUID | None) -> Message | None:
    if pk is None:
        return None
    return get_object_or_404(chat.messages, pk=pk, role=Message.Role.ASSISTANT)


def _is_delete(request: HttpRequest) -> bool:
    return request.method == "DELETE" or (
        request.method == "POST" and request.POST.get("_method") == "delete"
    )


def _asked(request: HttpRequest, answer: Message) -> HttpResponse:
    """A question and the answer that was queued for it: the partials of both."""
    question = answer.parent
    assert question is not None
    if answer.is_fresh and not (request.POST.get("edits") or request.POST.get("parent")):
        return _shown(request, answer, transcript.new_rows(question, answer))
    return _shown(request, answer, transcript.rows_of([question, answer]))


def _answered(request: HttpRequest, answer: Message) -> HttpResponse:
    return _shown(request, answer, transcript.rows_of([answer]))


def _shown(request: HttpRequest, answer: Message, rows: list[transcript.Row]) -> HttpResponse:
    chat = answer.chat
    if not wants_json(request):
        return _see(reverse("chat", args=[chat.pk]), f"#message-{answer.pk}")
    html = render_to_string("chats/_rows.html", {"rows": rows}, request)
    return JsonResponse({**_facts(chat), "message": answer.pk, "html": html})


def _held(request: HttpRequest, item: PendingMessage) -> HttpResponse:
    if not wants_json(request):
        return _see(reverse("chat", args=[item.chat_id]), f"#pending-{item.pk}")
    html = render_to_string("chats/_pending.html", {"item": item}, request)
    return JsonResponse({**_facts(item.chat), "pending": item.pk, "html": html})


def _stopped(request: HttpRequest, run: Generation) -> HttpResponse:
    if wants_json(request):
        return JsonResponse({"status": run.status, "generation": run.pk})
    message = Message.objects.visible_to(request.user).filter(generation=run).first()
    return _see(reverse("chat", args=[message.chat_id]) if message else reverse("home"))


def _done(request: HttpRequest, chat: Chat, *, url: str = "", fragment: str = "") -> HttpResponse:
    chat = Chat.objects.get(pk=chat.pk)
    if wants_json(request):
        return JsonResponse({**_facts(chat), "title": chat.name})
    return _see(url or reverse("chat", args=[chat.pk]), fragment)


def _facts(chat: Chat) -> dict[str, object]:
    return {"chat": chat.pk, "url": reverse("chat", args=[chat.pk]), "version": chat.version}


def _see(url: str, fragment: str = "") -> HttpResponse:
    return HttpResponseRedirect(f"{url}{fragment}", status=HTTPStatus.SEE_OTHER)
