"""Fixtures for every test: Alice (an owner), Bob (a stranger), Charlie (staff)."""

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import django
import pytest
from django.conf import settings as site_settings

assert site_settings.DATABASES  # read now, from the environment just prepared
django.setup()  # before a conftest further down imports models

if TYPE_CHECKING:
    from django.test import Client

    from accounts.models import User
    from inference.models import Release
    from tests.valkey import Valkey

PASSWORD = "correct horse battery staple"
LONGEST = ("cluster", "faults")  # folders whose files take a minute each
# Files that take long, and whose faults are the same whichever database it is.
ONCE = ("test_file_job_faults", "test_release_switch", "test_summary_kills")


def pytest_collection_modifyitems(items: list[pytest.Item], config: pytest.Config) -> None:
    """The longest files come first, so that the last to end are short ones. Browser tests come
    last: Playwright's loop stays, and no other may run beside it.

    On PostgreSQL only what uses the database is run again; the rest would do the same. The
    real model's kills know no database: there only `make faults` asks for them, and for ONCE.
    """
    if os.environ.get("TEST_DATABASE") == "postgres":
        rest = [item for item in items if not is_asked_again(item)]
        config.hook.pytest_deselected(items=rest)
        items[:] = [item for item in items if is_asked_again(item)]
    for item in items:
        if item.path.parent.name == "browser":
            item.add_marker("browser")
        if uses_the_database(item) and {"valkey", "redis"} & fixtures_of(item):
            item.add_marker("redis")
    items.sort(key=turn)


def turn(item: pytest.Item) -> tuple[bool, bool]:
    folder = item.path.parent.name
    return folder == "browser", folder not in LONGEST


def is_asked_again(item: pytest.Item) -> bool:
    of_the_model = item.path.parent.name == "faults" and "real_model" in item.keywords
    is_long = of_the_model or item.path.stem in ONCE
    return uses_the_database(item) and (not is_long or os.environ.get("FAULTS") == "all")


def uses_the_database(item: pytest.Item) -> bool:
    return "django_db" in item.keywords or bool(fixtures_of(item) & {"db", "transactional_db"})


def fixtures_of(item: pytest.Item) -> set[str]:
    return set(getattr(item, "fixturenames", ()))


def make_person(username: str, **fields: Any) -> "User":
    from accounts.models import User

    return User.objects.create_user(username, password=PASSWORD, **fields)


@pytest.fixture(autouse=True)
def _fast_passwords(settings: Any) -> None:
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]


@pytest.fixture(autouse=True)
def _fresh_limits() -> Iterator[None]:
    """Rate limits are counted in the cache; no test inherits another's."""
    from django.core.cache import cache

    cache.clear()
    yield
    cache.clear()


@pytest.fixture(scope="session")
def one_valkey(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Valkey]":
    from tests.valkey import Valkey

    server = Valkey(tmp_path_factory.mktemp("valkey")).start()
    yield server
    server.kill()


@pytest.fixture
def valkey(one_valkey: "Valkey", settings: Any) -> "Valkey":
    """A Valkey that is up and empty; the site uses it for the length of the test."""
    one_valkey.empty()
    from tests.valkey import use

    use(one_valkey, settings)
    return one_valkey


@pytest.fixture
def alice(db: None) -> "User":
    return make_person("alice")


@pytest.fixture
def bob(db: None) -> "User":
    return make_person("bob")


@pytest.fixture
def charlie(db: None) -> "User":
    return make_person("charlie", is_staff=True, is_superuser=True)


@pytest.fixture
def signed_in() -> "Callable[[User], Client]":
    """`signed_in(alice)` is a client with Alice's session."""
    from django.test import Client

    def client_of(user: "User") -> "Client":
        client = Client()
        client.force_login(user)
        return client

    return client_of


@pytest.fixture
def site_environment(transactional_db: None) -> dict[str, str]:
    """The environment for a child process that is to work on the test's own database."""
    from django.conf import settings
    from django.db import connection

    name = str(connection.settings_dict["NAME"])
    if connection.vendor == "sqlite":
        url = f"sqlite:///{name}"
    else:
        base = os.environ["DATABASE_URL"]
        url = base.replace("/postgres?", f"/{name}?", 1)
    names = {"DATABASE_URL": url, "DATA_DIR": str(settings.DATA_DIR)}
    return {**os.environ, **names, "REDIS_URL": settings.REDIS_URL}


@pytest.fixture
def release(db: None) -> "Release":
    """The simulated model's release."""
    from inference.catalogue import CATALOGUE, register

    return register(CATALOGUE["simulated"])


@pytest.fixture
def other_release(release: "Release") -> "Release":
    """Another release of the same model, not live."""
    from inference.models import Release

    return Release.objects.create(
        model=release.model, version=2, engine="simulated", context_tokens=2048
    )
