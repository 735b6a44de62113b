"""What every page carries: a strict policy, cookies with flags, no way to frame or sniff."""

import json
import logging
import os
import subprocess
import sys

import pytest
from django.conf import settings as site

from chatsite.logs import OneLine

pytestmark = pytest.mark.django_db


def policy_of(response):
    parts = response["Content-Security-Policy"].split("; ")
    return {name: values.split() for name, _, values in (part.partition(" ") for part in parts)}


@pytest.mark.parametrize("path", ["/accounts/login/", "/admin/login/", "/nowhere"])
def test_every_page_has_the_strict_policy(client, path):
    policy = policy_of(client.get(path))
    assert policy["default-src"] == ["'none'"]
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["object-src"] == ["'none'"]
    assert policy["connect-src"] == policy["style-src"] == ["'self'"]
    everything = {value for values in policy.values() for value in values}
    assert not {"'unsafe-inline'", "'unsafe-eval'", "*", "https:", "http:"} & everything


def test_a_nonce_is_never_used_twice(client):
    pages = [client.get("/accounts/login/") for _ in range(2)]
    nonces = [[v for v in policy_of(p)["script-src"] if "nonce" in v] for p in pages]
    assert nonces[0] == [] or nonces[0] != nonces[1]


def test_pages_are_neither_framed_nor_sniffed_nor_name_themselves(client):
    response = client.get("/accounts/login/")
    assert response["X-Frame-Options"] == "DENY"
    assert response["X-Content-Type-Options"] == "nosniff"
    assert response["Referrer-Policy"] == "same-origin"
    assert response["Cross-Origin-Opener-Policy"] == "same-origin"


def test_with_https_cookies_are_bound_to_host_and_transport():
    program = (
        "import json, django; django.setup(); from django.conf import settings as s;"
        "print(json.dumps([s.SESSION_COOKIE_NAME, s.CSRF_COOKIE_NAME, s.SESSION_COOKIE_SECURE,"
        "s.CSRF_COOKIE_SECURE, s.SESSION_COOKIE_HTTPONLY, s.CSRF_COOKIE_HTTPONLY,"
        "s.SECURE_SSL_REDIRECT, s.SECURE_HSTS_SECONDS > 0, s.DEBUG]))"
    )
    output = subprocess.check_output(
        [sys.executable, "-c", program], env={**os.environ, "HTTPS": "1"}, cwd=site.BASE_DIR
    )
    assert json.loads(output) == ["__Host-session", "__Host-csrf", *[True] * 6, False]


def test_a_forged_host_is_refused(client):
    assert client.get("/accounts/login/", headers={"host": "evil.example"}).status_code == 400


def test_a_log_line_cannot_be_forged():
    record = logging.LogRecord(
        "x", logging.INFO, "", 0, "name %s", ("a\n2026 ERROR \x1b[31mb",), None
    )
    line = OneLine("%(levelname)s %(message)s").format(record)
    assert line == r"INFO name a\n2026 ERROR \x1b[31mb"


@pytest.mark.parametrize(
    ("name", "status", "is_ours"),
    [
        ("django.security.TooManyFieldsSent", 400, False),
        ("django.request", 400, False),
        ("django.request", 500, True),
    ],
)
def test_what_a_stranger_sends_is_one_line_and_an_error_of_ours_has_its_traceback(
    name: str, status: int, is_ours: bool
):
    try:
        raise ValueError("1,200 fields")
    except ValueError:
        record = logging.LogRecord(name, logging.ERROR, "", 0, "Refused.", (), sys.exc_info())
    record.status_code = status
    lines = OneLine("%(message)s").format(record).splitlines()
    assert (len(lines) > 1) == is_ours


def test_a_body_that_cannot_be_read_is_one_line_of_the_log(client, caplog):
    kind = "multipart/form-data"
    assert client.generic("POST", "/chats/", b"x", content_type=kind).status_code == 400
    (record,) = caplog.records
    assert len(OneLine("%(message)s").format(record).splitlines()) == 1
