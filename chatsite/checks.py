"""Django system checks that catch a wrong installation before people do.

`manage.py check` runs them, and so does every command that asks for checks. Each has an id,
says what to do, and names the page that explains.
"""

import ipaddress
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, register
from django.core.checks import Warning as Advice
from django.db import DatabaseError, connection

from inference import doorbell
from inference.catalogue import CATALOGUE, EMBEDDERS
from inference.management.commands.worker import names

SETTINGS_PAGE = "docs/settings.md"
OLDEST_SQLITE = (3, 35)  # UPDATE … RETURNING
SOCKET_NAME_ROOM = len("/4194304-abcdef.bell")  # the longest name of a doorbell
SECRET_KEY_CHARACTERS = 50


def _hint(what: str, section: str) -> str:
    return f"{what} See {SETTINGS_PAGE}#{section}."


@register()
def data_folder(**_: Any) -> Sequence[CheckMessage]:
    """chatsite.E001 and E002: the data folder can be written to, and sockets fit in it."""
    found: list[CheckMessage] = []
    folder: Path = settings.DATA_DIR
    if not os.access(folder, os.W_OK | os.X_OK):
        found.append(
            Error(
                f"The data folder {folder} cannot be written to.",
                hint=_hint("Change its owner, or name another one in DATA_DIR.", "data_dir"),
                id="chatsite.E001",
            )
        )
    if len(os.fsencode(doorbell.directory())) + SOCKET_NAME_ROOM > doorbell.MAX_PATH:
        found.append(
            Error(
                f"The path of the data folder {folder} is too long for Unix sockets in it.",
                hint=_hint("Name a shorter one in DATA_DIR.", "data_dir"),
                id="chatsite.E002",
            )
        )
    return found


@register(Tags.database)
def model_is_known(databases: Any = None, **_: Any) -> Sequence[CheckMessage]:
    """chatsite.W003: what people get is in the catalogue, or somebody has pulled it."""
    if not databases:  # only a check that may ask the database can know
        return []
    try:
        known = names()
    except DatabaseError:
        known = {*CATALOGUE} - EMBEDDERS
    if settings.MODEL in known:
        return []
    hint = _hint(f"Known models: {', '.join(sorted(known))}.", "model")
    sentence = f"MODEL={settings.MODEL} names no model that answers."
    return [Advice(sentence, hint=hint, id="chatsite.W003")]


@register()
def model_file(**_: Any) -> Sequence[CheckMessage]:
    """chatsite.W004 and W005: the catalogue's model is here, and of the right size."""
    entry = CATALOGUE.get(settings.MODEL)
    if entry is None or not entry.source:
        return []
    file = settings.MODELS_DIR / entry.file_name
    hint = _hint(f"Run: ./manage.py models pull {entry.slug}", "model")
    if not file.exists():
        message = f"The model file {entry.file_name} is not in {settings.MODELS_DIR}."
        return [Advice(message, hint=hint, id="chatsite.W004")]
    if file.stat().st_size != entry.file_bytes:
        message = f"The model file {file} is not the one it should be: its size is wrong."
        return [Advice(message, hint=hint, id="chatsite.W005")]
    return []


@register(Tags.security)
def secret_key(**_: Any) -> Sequence[CheckMessage]:
    """chatsite.E006: outside debugging the signing key must be long and not a sample."""
    key = settings.SECRET_KEY
    is_weak = len(key) < SECRET_KEY_CHARACTERS or len(set(key)) < 5 or "insecure" in key
    if settings.DEBUG or not is_weak:
        return []
    return [
        Error(
            "SECRET_KEY is weak: whoever guesses it can log in as anybody.",
            hint=_hint("Leave it unset (one is made in DATA_DIR) or make it longer.", "secret_key"),
            id="chatsite.E006",
        )
    ]


@register(Tags.security)
def any_host(**_: Any) -> Sequence[CheckMessage]:
    """chatsite.W007: '*' lets other sites' names reach this one."""
    if "*" not in settings.ALLOWED_HOSTS:
        return []
    return [
        Advice(
            "ALLOWED_HOSTS is '*': any host name is taken for this site's own.",
            hint=_hint("Name the hosts people use.", "allowed_hosts"),
            id="chatsite.W007",
        )
    ]


@register(Tags.database)
def sqlite_version(**_: Any) -> Sequence[CheckMessage]:
    """chatsite.E008: the SQLite library has what the queue needs."""
    if connection.vendor != "sqlite" or sqlite3.sqlite_version_info >= OLDEST_SQLITE:
        return []
    return [
        Error(
            f"SQLite {sqlite3.sqlite_version} is too old; 3.35 or later is needed.",
            hint=_hint("Use a newer Python build, or PostgreSQL.", "database_url"),
            id="chatsite.E008",
        )
    ]


@register(Tags.security)
def public_without_https(**_: Any) -> Sequence[CheckMessage]:
    """chatsite.W009: passwords would cross the network in the clear."""
    if settings.HTTPS or settings.DEBUG or _is_local(settings.HOST):
        return []
    return [
        Advice(
            f"HOST={settings.HOST} is reachable from other machines, and HTTPS is off.",
            hint=_hint("Put a proxy with TLS in front and set HTTPS=1.", "https"),
            id="chatsite.W009",
        )
    ]


@register(deploy=True)
def exact_build(**_: Any) -> Sequence[CheckMessage]:
    """chatsite.W010: with this llama.cpp an answer depends on what else was running.

    Only where somebody asks (`check --deploy`, `doctor`): it loads the library.
    """
    try:
        from inference.engines.llama_library import build, is_exact
    except (ImportError, OSError, RuntimeError):
        return []  # the doctor says so
    if settings.REPRODUCIBLE or is_exact(build()):
        return []
    return [
        Advice(
            "This llama.cpp is not known to give the same answer whatever else is running.",
            hint=_hint("Build it with make run, or set REPRODUCIBLE=1.", "reproducible"),
            id="chatsite.W010",
        )
    ]


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host in ("localhost", "")
