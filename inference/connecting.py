"""`manage.py models connect`: take a server that runs somewhere already into use."""

import asyncio
import os
from argparse import ArgumentParser
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils.text import slugify

from inference.audit import ReleaseEvent
from inference.backend import KEY_PREFIX, Backend
from inference.engines.base import EngineError
from inference.models import Model, Release
from inference.sources import SLUG

if TYPE_CHECKING:
    from inference.engines.flavours import Found

SLOTS = 8  # where neither the server nor anybody else says


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model", metavar="SLUG", help="the model's name here, new or connected")
    parser.add_argument("--url", required=True, help="such as http://10.0.0.7:8080")
    parser.add_argument("--kind", required=True, choices=Backend.Kind.values)
    parser.add_argument("--name", default="", help="the server's name here (its address)")
    parser.add_argument("--served-model", default="", help="the model's name there (its first)")
    parser.add_argument("--slots", type=int, default=0, help="answers it writes at once")
    parser.add_argument("--api-key-env", default="", help="environment variable with its key")
    parser.add_argument("--context", type=int, default=0, help="tokens of one conversation")


def connect(say: Callable[[str], Any], model: str, by: str, **options: Any) -> None:
    """Ask the server what it is, and record it. Raises EngineError with what to do."""
    backend = Backend(
        name=options["name"] or _name_of(options["url"]),
        url=options["url"],
        kind=options["kind"],
        served_model=options["served_model"],
        slots=options["slots"] or SLOTS,
        api_key_env=options["api_key_env"],
    )
    if not SLUG.fullmatch(model):
        raise EngineError(f"{model!r} cannot be a name: take small letters, digits and hyphens.")
    if backend.api_key_env and not backend.api_key_env.startswith(KEY_PREFIX):
        raise EngineError(f"--api-key-env takes a variable whose name begins with {KEY_PREFIX}.")
    if backend.api_key_env and not os.environ.get(backend.api_key_env):
        raise EngineError(f"The environment variable {backend.api_key_env} is empty here.")
    found = describe(backend)
    say(f"Found {found.model or 'a server'} {found.build}".strip() + f" at {backend.url}.")
    backend.served_model = backend.served_model or found.model
    backend.slots = options["slots"] or found.slots or SLOTS
    release = _record(model, backend, found, options["context"], by)
    say(f"{release} has the server {backend.name}: {backend.slots} answers at once.")
    say(f"It reads {release.context_tokens} tokens. {_continuing(found, release)}")
    if release.state == Release.State.LIVE:
        say(f"To let people get it, start the site with MODEL={model}.")
    else:
        say(f"To let people get it: ./manage.py models promote {release.name}")


def describe(backend: Backend) -> "Found":
    """What a server says of itself now. Raises EngineError."""
    return asyncio.run(_found(backend))


async def _found(backend: Backend) -> "Found":
    from inference.engines.backends import Peer

    peer = Peer(backend.for_engine())
    try:
        return await peer.describe()
    finally:
        await peer.close()


def _record(slug: str, backend: Backend, found: "Found", wanted_context: int, by: str) -> Release:
    """The release for what this server runs, with the server as one of its own."""
    context = wanted_context or found.context_tokens
    if not context:
        raise EngineError("The server does not say how much it reads. Add: --context TOKENS")
    facts: dict[str, Any] = {"engine": "upstream", "served_model": backend.served_model}
    if wanted_context:
        facts["context_tokens"] = wanted_context
    with transaction.atomic():
        release = Model.named(slug).record(facts, by, **{"context_tokens": context, **facts})
        backend.release = release
        known = release.backends.filter(name=backend.name).first()
        if known:
            backend.pk, backend.created_at = known.pk, known.created_at
            backend._state.adding = False
        try:
            backend.full_clean()
        except ValidationError as error:
            raise EngineError(" ".join(error.messages)) from error
        backend.save()
        note = f"{backend.name} {backend.url}"
        release.note(ReleaseEvent.Action.SERVER, by, from_state=release.state, note=note)
    return release


def _name_of(url: str) -> str:
    return slugify(urlsplit(url).netloc.replace(".", "-").replace(":", "-"))[:40] or "server"


def _continuing(found: "Found", release: Release) -> str:
    if found.continues:
        return "When a server dies, another one goes on with its answers."
    if release.cannot_continue == Release.CannotContinue.RESTART:
        return "When a server dies, its answers begin anew on another one."
    return "When a server dies, its answers end where they are."
