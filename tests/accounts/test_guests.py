"""A guest is asked for nothing and loses nothing."""

import re
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.auth import get_user
from django.test import Client, RequestFactory
from django.utils import timezone

from accounts.guests import SAME_PAGE, hand_over, person
from accounts.models import User
from chats.models import Chat, Message
from tests.conftest import PASSWORD

pytestmark = pytest.mark.django_db


def ask(client: Client, csrf_secret: str = "", client_id: str = "one click") -> User:
    """What a chats view does on a send, without the rest of it."""
    request = RequestFactory().post("/", {"client_id": client_id})
    request.session = client.session
    request.user = get_user(request)
    if csrf_secret:
        request.META["CSRF_COOKIE"] = csrf_secret
    user = person(request)
    request.session.save()
    client.cookies["session"] = str(request.session.session_key)
    return user


def sign_up(client: Client, name: str = "alice") -> Any:
    form = {"username": name, "password1": PASSWORD, "password2": PASSWORD}
    return client.post("/accounts/signup/", form)


def log_in(client: Client, name: str = "alice", password: str = PASSWORD) -> Any:
    return client.post("/accounts/login/", {"username": name, "password": password})


def test_the_first_send_makes_a_guest_and_the_second_finds_them_again(client):
    guest = ask(client)
    assert guest.is_guest
    assert not guest.has_usable_password()
    assert ask(client) == guest


def test_a_member_who_sends_stays_who_they_are(signed_in, alice):
    assert ask(signed_in(alice)) == alice
    assert User.objects.count() == 1


def test_two_sends_at_once_from_one_page_make_one_guest():
    assert ask(Client(), "a" * 32) == ask(Client(), "a" * 32)


def test_two_people_who_send_at_once_are_two_guests():
    assert ask(Client(), "a" * 32) != ask(Client(), "b" * 32)


def test_who_knows_a_page_secret_alone_is_not_let_in():
    guest = ask(Client(), "a" * 32, "a click nobody else knows")
    assert ask(Client(), "a" * 32, "another") != guest
    assert ask(Client(), "a" * 32, "") != guest


def test_a_page_secret_is_no_way_back_to_a_guest_later():
    guest = ask(Client(), "a" * 32)
    User.objects.filter(pk=guest.pk).update(date_joined=timezone.now() - SAME_PAGE)
    assert ask(Client(), "a" * 32) != guest


def test_becoming_a_guest_keeps_other_open_pages_able_to_send(client):
    request = RequestFactory().post("/", {"client_id": "one click"})
    request.session, request.META["CSRF_COOKIE"] = client.session, "a" * 32
    request.user = get_user(request)
    person(request)
    assert request.META["CSRF_COOKIE"] == "a" * 32


def test_signing_up_keeps_the_guests_chats_and_their_row(client):
    guest = ask(client)
    chat = Chat.objects.create(user=guest)
    sign_up(client)
    chat.refresh_from_db()
    assert chat.user_id == guest.pk
    assert chat.user.username == "alice"
    assert not chat.user.is_guest
    assert get_user(client).pk == guest.pk


def test_logging_in_moves_the_guests_chats_and_deletes_the_guest(client, alice):
    guest = ask(client)
    chat = Chat.objects.create(user=guest)
    message = Message.objects.create(chat=chat, user=guest, role="user", text="Hello")
    log_in(client)
    chat.refresh_from_db()
    message.refresh_from_db()
    assert (chat.user, message.user) == (alice, alice)
    assert not User.objects.filter(is_guest=True).exists()


def test_who_logs_in_or_signs_up_from_a_chat_comes_back_to_it(client, alice):
    chat = Chat.objects.create(user=ask(client))
    path = f"/chats/{chat.pk}/"
    page = client.get(path).content.decode()
    links = re.findall(r'href="([a-z/]+/\?next=[^"]+)"', page)
    assert len(links) == 4  # in the bar above and in the list of chats
    link = next(link for link in links if "login" in link)
    answer = client.post(link, {"username": "alice", "password": PASSWORD})
    assert answer.url == path
    assert client.get(path).status_code == 200


def test_who_opens_a_chat_of_another_session_is_asked_to_log_in_and_comes_back_to_it(client, alice):
    path = f"/chats/{Chat.objects.create(user=alice).pk}/"
    page = client.get(path)
    assert page.status_code == 404
    login = f"/accounts/login/?next={path}"
    assert login in page.content.decode()
    assert f"/accounts/signup/?next={path}" in client.get(login).content.decode()
    assert client.post(login, {"username": "alice", "password": PASSWORD}).url == path
    assert client.get(path).status_code == 200
    nothing = client.get(f"/chats/{uuid4()}/")  # their own account has nothing there
    assert (nothing.status_code, "?next=" in nothing.content.decode()) == (404, False)


def test_a_failed_log_in_moves_nothing(client, alice):
    guest = ask(client)
    Chat.objects.create(user=guest)
    log_in(client, password="wrong")
    assert Chat.objects.get().user == guest


def test_a_row_that_would_clash_stays_with_the_guest_and_is_not_lost(alice):
    guest, client_id = User.objects.create_guest(), uuid4()
    chats = [Chat.objects.create(user=owner) for owner in (alice, guest, guest)]
    for chat in chats[:2]:
        Message.objects.create(chat=chat, user=chat.user, role="user", client_id=client_id)
    free = Message.objects.create(chat=chats[2], user=guest, role="user", client_id=uuid4())
    hand_over(guest, alice)
    free.refresh_from_db()
    assert free.user == alice
    assert Chat.objects.filter(user=alice).count() == 3
    assert Message.objects.filter(user=guest, client_id=client_id).exists()


def test_a_session_is_renewed_once_a_day_by_sending(client):
    ask(client)
    session = client.session
    assert session.get_expiry_age() == 60 * 60 * 24 * 90
    assert session["kept_on"] == timezone.now().date().isoformat()
