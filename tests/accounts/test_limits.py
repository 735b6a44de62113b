"""Limits: who is counted, where the address comes from, and what a refusal looks like."""

import pytest
from django.test import Client, RequestFactory
from hypothesis import given
from hypothesis import strategies as st

from accounts.limits import client_address, client_network, limited, wait_in_words
from accounts.models import User
from tests.accounts.test_guests import log_in, sign_up

pytestmark = pytest.mark.django_db


def request_from(peer: str, forwarded: str = ""):
    headers = {"x-forwarded-for": forwarded} if forwarded else {}
    return RequestFactory().get("/", REMOTE_ADDR=peer, headers=headers)


def test_the_eleventh_try_for_one_name_is_refused_with_the_wait_in_words(client, alice):
    for _ in range(10):
        assert log_in(client, "alice", "wrong").status_code == 200
    refused = log_in(client)
    assert refused.status_code == 429
    assert 0 < int(refused["Retry-After"]) <= 15 * 60
    assert any(unit in refused.content.decode() for unit in ("minute", "second"))


def test_a_refusal_in_json_says_how_long(client, alice, settings):
    settings.RATE_LIMITS = {**settings.RATE_LIMITS, "login": "0/m"}
    form = {"username": "alice", "password": "x"}
    answer = client.post("/accounts/login/", form, headers={"accept": "application/json"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (429, "rate_limited")
    assert error["retry_after"] > 0


def test_tries_for_one_name_do_not_lock_another_name_or_address_out(client, alice, bob):
    for _ in range(11):
        log_in(client, "alice", "wrong")
    assert log_in(client, "bob").status_code == 302
    elsewhere = Client(REMOTE_ADDR="203.0.113.9")
    assert log_in(elsewhere, "alice").status_code == 302


def test_many_names_from_one_address_are_refused_in_the_end(client, settings):
    settings.RATE_LIMITS = {**settings.RATE_LIMITS, "login_address": "3/m"}
    tries = [log_in(client, f"name{number}", "wrong").status_code for number in range(4)]
    assert tries == [200, 200, 200, 429]


def test_spelling_a_name_otherwise_is_no_way_round(client, alice, settings):
    settings.RATE_LIMITS = {**settings.RATE_LIMITS, "login": "1/m"}
    log_in(client, "alice", "wrong")
    assert log_in(client, "ALICE", "wrong").status_code == 429


@pytest.mark.parametrize("spelling", [" alice", "alice ", "alice\t", "\uff41lice"])
def test_a_spelling_that_logs_in_as_the_same_name_counts_as_it(client, alice, settings, spelling):
    settings.RATE_LIMITS = {**settings.RATE_LIMITS, "login": "1/m"}
    log_in(client, "alice", "wrong")
    assert log_in(client, spelling, "wrong").status_code == 429


def test_the_admin_has_no_log_in_of_its_own(client, alice, charlie, signed_in):
    for method in (client.get, client.post):
        assert method("/admin/login/").headers["Location"] == "/accounts/login/?next=%2Fadmin%2F"
    assert signed_in(alice).get("/admin/login/").status_code == 403
    assert signed_in(charlie).get("/admin/login/").headers["Location"] == "/admin/"


def test_a_new_guest_is_no_new_person_to_the_limit_on_accounts(client, settings):
    settings.RATE_LIMITS = {**settings.RATE_LIMITS, "signup": "1/h"}
    sign_up(client, "alice")
    other = Client()
    other.force_login(User.objects.create_guest())
    assert sign_up(other, "bob").status_code == 429


def test_hundreds_of_counts_do_not_push_one_out(client, alice, settings):
    settings.RATE_LIMITS = {**settings.RATE_LIMITS, "login": "1/m", "login_address": "9999/m"}
    log_in(client, "alice", "wrong")
    for number in range(400):
        limited(request_from("192.0.2.1"), "send", account=str(number))
    assert log_in(client, "alice", "wrong").status_code == 429


def test_signing_up_is_limited(client, settings):
    settings.RATE_LIMITS = {**settings.RATE_LIMITS, "signup": "1/h"}
    sign_up(client, "alice")
    client.post("/accounts/logout/")
    assert sign_up(client, "bob").status_code == 429


def test_people_are_counted_by_account_wherever_they_are(alice, settings):
    settings.RATE_LIMITS = {"send": "1/m"}
    here, there = request_from("192.0.2.1"), request_from("192.0.2.2")
    here.user = there.user = alice
    assert limited(here, "send") is None
    assert limited(there, "send")


def test_a_header_from_a_stranger_does_not_change_who_they_are():
    assert client_address(request_from("192.0.2.1", "198.51.100.7")) == "192.0.2.1"


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        ("198.51.100.7", "198.51.100.7"),
        ("1.1.1.1, 198.51.100.7", "198.51.100.7"),
        ("1.1.1.1, 198.51.100.7, 10.1.2.3", "198.51.100.7"),
        ("", "10.0.0.1"),
        ("nonsense", "10.0.0.1"),
        ("198.51.100.7, nonsense, 10.1.2.3", "10.1.2.3"),
    ],
)
def test_behind_our_proxies_the_last_foreign_hop_counts(settings, forwarded, client):
    settings.TRUSTED_PROXIES = ["10.0.0.0/8"]
    assert client_address(request_from("10.0.0.1", forwarded)) == client


def test_a_unix_socket_can_be_a_trusted_proxy(settings):
    settings.TRUSTED_PROXIES = ["unix"]
    assert client_address(request_from("", "198.51.100.7")) == "198.51.100.7"


def test_one_subscribers_ipv6_addresses_count_as_one():
    here, there = (request_from(f"2001:db8:1:2::{end}") for end in ("1", "ffff"))
    assert client_network(here) == client_network(there) == "2001:db8:1:2::"
    assert client_network(request_from("::ffff:192.0.2.1")) == "192.0.2.1"


@given(st.text(max_size=200), st.text(max_size=60))
def test_no_header_breaks_the_count(forwarded, peer):
    assert client_network(request_from(peer, forwarded))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1, "1 second"),
        (60, "60 seconds"),
        (61, "2 minutes"),
        (3601, "2 hours"),
        (900, "15 minutes"),
    ],
)
def test_the_wait_is_rounded_up(seconds, text):
    assert wait_in_words(seconds) == text
