"""Only pages of this very site open a socket: cookies alone do not prove that (ATTACKS, row 20)."""

from typing import Any

import pytest

from chatsite.origin import SameOriginOnly

HERE = {"host": "chat.example.org", "origin": "https://chat.example.org"}


async def opened(headers: dict[str, str]) -> bool:
    """Whether a handshake with these headers comes to the application."""
    came, sent = [], []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        came.append(scope)

    async def send(message: Any) -> None:
        sent.append(message)

    lines = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    await SameOriginOnly(app)({"type": "websocket", "headers": lines}, None, send)  # type: ignore[arg-type]
    assert bool(came) != bool(sent)
    assert sent == [] or sent[0]["type"] == "websocket.close"  # before the handshake: 403
    return bool(came)


@pytest.fixture(autouse=True)
def site(settings: Any) -> Any:
    settings.ALLOWED_HOSTS = ["chat.example.org"]
    settings.HTTPS = True
    return settings


async def test_a_page_of_this_site_may():
    assert await opened(HERE)
    assert await opened(HERE | {"origin": "HTTPS://Chat.Example.org"})


@pytest.mark.parametrize(
    "origin",
    [
        None,
        "",
        "null",
        "https://evil.example",
        "https://chat.example.org.evil.example",
        "https://chat.example.org:8443",
        "https://chat.example.org/",
        "http://chat.example.org",
        "chat.example.org",
        "https://user@chat.example.org",
        "https://chat.example.org, https://evil.example",
        "https://chat.ex\xe4mple.org",
    ],
)
async def test_no_other_page_and_none_that_says_nothing(origin: str | None):
    said = {} if origin is None else {"origin": origin}
    assert not await opened({"host": "chat.example.org", **said})


async def test_a_host_that_is_not_ours_proves_nothing_even_if_the_page_is_its_own():
    assert not await opened({"host": "evil.example", "origin": "https://evil.example"})
    assert not await opened({"origin": "https://chat.example.org"})


async def test_origins_that_the_settings_trust_may(site: Any):
    site.CSRF_TRUSTED_ORIGINS = ["https://intranet.example.org"]
    assert await opened(HERE | {"origin": "https://intranet.example.org"})


async def test_without_tls_both_schemes_may(site: Any):
    site.HTTPS = False
    assert await opened(HERE | {"origin": "http://chat.example.org"})
    assert await opened(HERE)
