"""`manage.py migrate-store`: from one database into another and back, with nothing lost."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.conf import settings as site_settings
from django.core.management import call_command

from accounts.models import Tier, User
from chats.models import Chat, Message
from chatsite.moving import checksum, ordered_tables
from inference.models import Generation, Release

pytestmark = pytest.mark.django_db(transaction=True)
ON_SQLITE = "sqlite" in site_settings.DATABASES["default"]["ENGINE"]
SUMS = """
import django; django.setup()
from tests.chatsite.test_moving import everything
print(everything())
"""


def run(*words: str, **names: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], cwd=site_settings.BASE_DIR, env={**os.environ, **names},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def move(source: str, target: str, **names: str) -> subprocess.CompletedProcess[str]:
    return run("manage.py", "migrate-store", "--from", source, "--to", target, **names)


def everything() -> dict[str, tuple[int, str]]:
    return {t._meta.label: checksum(t._base_manager.all()) for t in ordered_tables()}


def sums_of(url: str) -> str:
    done = run("-c", SUMS, DATABASE_URL=url)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def here(site_environment: dict[str, str]) -> str:
    return site_environment["DATABASE_URL"]


@pytest.fixture
def there(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'there.sqlite3'}"


@pytest.fixture
def filled(alice: User, bob: User, release: Release, settings: Any) -> None:
    """A site that has been used: answers under way, bytes, JSON, times, references in circles."""
    settings.MODEL = "simulated"
    bob.tier = Tier.objects.create(slug="gold", name="Göld", weight=3)
    bob.save()
    for person in (alice, bob):
        for number in range(3):
            answer = Chat.start(person, f"Wörds {number} 🙂", uuid4())
            Message.objects.filter(pk=answer.pk).update(text="Å\n```py\nx = 1\n```")
    [run, *_] = Generation.objects.claim(release, uuid4(), 2)
    run.log.append(run.fence, 1, "Hé", [1, 2, 49_151])


@pytest.mark.skipif(ON_SQLITE, reason="between two kinds of databases: run on PostgreSQL")
def test_everything_goes_there_and_comes_back_the_same(filled: None, here: str, there: str):
    before = everything()
    assert before["chats.Message"][0] == 12
    done = move(here, there)
    assert (done.returncode, "the same as in the source" in done.stdout) == (0, True), done.stderr
    assert sums_of(there) == str(before)
    call_command("flush", interactive=False, verbosity=0, inhibit_post_migrate=True)
    done = move(there, here)
    assert done.returncode == 0, done.stderr
    assert everything() == before
    assert Tier.objects.create(slug="new", name="New").pk  # its key is not taken
    assert Generation.objects.get(status="running", fence=1, log_seq=1).log.text() == "Hé"


@pytest.mark.skipif(not ON_SQLITE, reason="run on SQLite")
def test_what_was_killed_goes_on(filled: None, here: str, there: str):
    assert move(here, there, FAILPOINT="moved@9:kill").returncode == -9
    done = move(here, there)
    assert done.returncode == 0, done.stderr
    assert sums_of(there) == str(everything())


@pytest.mark.skipif(not ON_SQLITE, reason="run on SQLite")
def test_a_target_with_other_people_is_left_alone_and_a_difference_is_found(
    filled: None, here: str, there: str
):
    assert move(here, "env:TARGET", TARGET=there).returncode == 0
    Message.objects.filter(text__startswith="Å").update(text="changed meanwhile")
    done = move(here, there)
    assert (done.returncode, "chats.Message is not the same" in done.stderr) == (1, True)
    User.objects.filter(username="bob").delete()
    done = move(here, there)
    assert (done.returncode, "a site of its own" in done.stderr) == (1, True)


@pytest.mark.skipif(not ON_SQLITE, reason="run on SQLite")
def test_what_is_no_database_is_refused_in_one_sentence(there: str):
    done = move("mysql://root:secret@localhost/x", there)
    assert (done.returncode, "The source must be" in done.stderr) == (1, True)
    assert "secret" not in done.stderr
    mistyped = there.replace("there", "their")
    assert "There is no file" in move(mistyped, there).stderr
    assert not Path(mistyped.removeprefix("sqlite:///")).exists()
    assert "same database" in move(there, there).stderr
    assert "same database" in move(there, "env:TARGET", TARGET=there).stderr
    assert "no variable TARGET" in move(there, "env:TARGET").stderr
