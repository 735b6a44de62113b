"""Sign up, log in, log out, password: what is granted and what is refused."""

import re
import statistics
import time
from typing import Any

import pytest
from django.contrib.auth import get_user
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from accounts.models import User
from tests.accounts.test_guests import log_in, sign_up
from tests.conftest import PASSWORD

pytestmark = pytest.mark.django_db


def words(response: Any) -> str:
    """The page without its CSRF token, nonces and what was typed."""
    text = response.content.decode()
    return re.sub(r'(value|nonce|content)="[^"]*"', "", text)


@pytest.mark.parametrize("name", ["login", "signup", "account"])
def test_pages_answer_anybody(client, name):
    assert client.get(reverse(name)).status_code == 200


def test_signing_up_logs_in(client):
    assert sign_up(client).status_code == 302
    assert get_user(client).username == "alice"


@pytest.mark.parametrize("name", ["ALICE", "guest-7", "Guest-x", "a\0b", ""])
def test_a_taken_or_reserved_or_broken_name_is_refused(client, alice, name):
    assert sign_up(client, name).status_code == 200
    assert User.objects.count() == 1


def test_a_name_logs_in_in_other_letters_too(client, alice):
    assert log_in(client, "ALICE").status_code == 302
    assert get_user(client) == alice


def test_of_two_names_in_different_letters_each_logs_in_as_it_is_written(client, alice):
    other = User.objects.create_user("Alice", password=PASSWORD)
    assert log_in(client, "ALICE").status_code == 200
    log_in(client, "Alice")
    assert get_user(client) == other


@pytest.mark.parametrize("password", ["12345678901", "password", "short", "alice-alice"])
def test_a_weak_password_is_refused(client, password):
    form = {"username": "alice-alice", "password1": password, "password2": password}
    assert client.post("/accounts/signup/", form).status_code == 200
    assert not User.objects.exists()


def test_members_are_sent_on_from_log_in_and_sign_up(signed_in, alice):
    client = signed_in(alice)
    for name in ("login", "signup"):
        assert client.get(reverse(name)).status_code == 302
    assert sign_up(client, "another").status_code == 302
    assert User.objects.count() == 1


@pytest.mark.parametrize(
    "target",
    [
        "https://evil.example/",
        "//evil.example",
        "/\\evil.example",
        "javascript:alert(1)",
        "http:///evil.example",
        "\tjavascript:alert(1)",
    ],
)
def test_next_never_leads_to_another_site(client, alice, target):
    form = {"username": "alice", "password": PASSWORD, "next": target}
    assert client.post("/accounts/login/", form).url == reverse("home")


def test_next_leads_to_a_page_of_this_site(client, alice):
    form = {"username": "alice", "password": PASSWORD, "next": "/accounts/password/"}
    assert client.post("/accounts/login/", form).url == "/accounts/password/"


def test_the_session_id_changes_at_log_in(client, alice):
    planted = client.session
    planted["marker"] = 1
    planted.save()
    before = planted.session_key
    log_in(client)
    assert client.session.session_key != before


def test_a_session_from_before_log_out_is_worth_nothing(client, alice):
    log_in(client)
    stolen = Client()
    stolen.cookies["session"] = client.cookies["session"].value
    client.post("/accounts/logout/")
    assert get_user(stolen).is_anonymous


def test_logging_out_needs_a_post(client):
    assert client.get("/accounts/logout/").status_code == 405


def test_forms_need_the_csrf_token(alice):
    strict = Client(enforce_csrf_checks=True)
    for name in ("login", "signup", "logout", "password"):
        assert strict.post(reverse(name), {"username": "alice"}).status_code == 403


def test_changing_the_password_keeps_this_session_and_ends_the_others(client, alice):
    log_in(client)
    other = Client()
    log_in(other)
    new = "another long passphrase"
    form = {"old_password": PASSWORD, "new_password1": new, "new_password2": new}
    assert client.post("/accounts/password/", form).status_code == 302
    assert get_user(client) == alice
    assert get_user(other).is_anonymous


def test_changing_the_password_needs_the_old_one(signed_in, alice):
    form = {"old_password": "wrong", "new_password1": "x" * 20, "new_password2": "x" * 20}
    assert signed_in(alice).post("/accounts/password/", form).status_code == 200
    alice.refresh_from_db()
    assert alice.check_password(PASSWORD)


def test_guests_and_strangers_have_no_password_to_change(client, signed_in):
    guest = signed_in(User.objects.create_guest())
    for visitor in (client, guest):
        assert visitor.get("/accounts/password/").status_code == 302


def test_an_unknown_name_and_a_wrong_password_get_the_same_words(client, alice):
    assert words(log_in(client, "alice", "wrong")) == words(log_in(client, "nobody", "wrong"))


def test_a_disabled_account_looks_like_an_unknown_one(client, alice):
    User.objects.filter(pk=alice.pk).update(is_active=False)
    assert words(log_in(client)) == words(log_in(client, "nobody"))


@pytest.mark.parametrize("name", ["nobody", "disabled", "guest"])
def test_the_time_a_refusal_takes_does_not_tell_who_exists(client, settings, alice, name):
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.Argon2PasswordHasher"]
    settings.RATE_LIMITS = {**settings.RATE_LIMITS, "login": "999/m", "login_address": "999/m"}
    alice.set_password(PASSWORD)
    alice.save()
    User.objects.create_user("disabled", password=PASSWORD, is_active=False)
    User.objects.create_guest("guest")

    def cpu_seconds(who: str) -> float:
        started = time.process_time()
        log_in(client, who, "wrong")
        return time.process_time() - started

    log_in(client, "warm", "up")
    known = statistics.median(cpu_seconds("alice") for _ in range(9))
    other = statistics.median(cpu_seconds(name) for _ in range(9))
    # CPU time, and half a hash of room: without the care it would be a whole hash apart.
    assert abs(known - other) < 0.5 * known


def test_cookies_cannot_be_read_by_scripts_nor_sent_by_other_sites(client, alice):
    response = log_in(client)
    for cookie in (response.cookies["session"], client.get("/accounts/login/").cookies.get("csrf")):
        if cookie is not None:
            assert cookie["httponly"]
            assert cookie["samesite"] == "Lax"


def test_pages_about_the_account_are_never_cached(client):
    assert "no-store" in client.get("/accounts/login/")["Cache-Control"]


@pytest.mark.parametrize("value", ['"aaaaaaaaa\\000b"', "x" * 5000, "../../etc/passwd", "A" * 32])
def test_a_cookie_that_is_no_session_of_ours_is_a_stranger_s(client, value):
    with CaptureQueriesContext(connection) as queries:
        page = client.get("/accounts/", headers={"cookie": f"session={value}"})
    assert page.status_code == 200
    assert "You are a guest" in page.content.decode()
    assert not [q for q in queries if "django_session" in q["sql"]]
