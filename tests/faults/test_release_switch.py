"""Releases are switched under load, by real processes, without a failed answer."""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from accounts.models import User
from chatsite.children import Crew
from inference.catalogue import CATALOGUE, register
from inference.models import Generation, Release, Worker
from inference.tuning.formats import make
from tests.contract.conftest import model_file
from tests.faults.workers import SMALL_REAL, Recorder, ask, wait_for

pytestmark = pytest.mark.django_db(transaction=True)
COUNTED = " ".join(str(number) for number in range(1, 61))


class Site:
    """The workers' half of `manage.py serve`, looked after while a test waits."""

    def __init__(self, environment: dict[str, str], **names: str) -> None:
        self._environment = {**environment, "DRAIN_SECONDS": "2", **names}
        self.crew = Crew(self._spawn)

    def _spawn(self, words: list[str], names: dict[str, str]) -> Any:
        command = [sys.executable, "manage.py", *words]
        return subprocess.Popen(command, env={**self._environment, **names})

    def until(self, condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
        def looked_after() -> bool:
            self.crew.ensure()
            return condition()

        wait_for(looked_after, seconds, what)

    def until_ready(self, release: Release) -> None:
        ready = Worker.objects.living().filter(release=release, state="ready")
        self.until(ready.exists, f"a worker of {release}")

    def close(self) -> None:
        for process in self.crew.processes:
            process.kill()
        for process in self.crew.processes:
            process.wait(20)


@pytest.fixture
def site(site_environment: dict[str, str], settings: Any) -> Any:
    settings.MODEL = "simulated"
    settings.GENERATION_FINISHED = "tests.contract.conftest.nothing_follows"
    made = Site(site_environment, MODEL="simulated")
    yield made
    made.close()


@pytest.fixture
def real_site(site_environment: dict[str, str], settings: Any, tmp_path: Path) -> Any:
    """Its model files are in `tmp_path`."""
    entry = CATALOGUE["smollm2-135m-instruct"]
    shutil.copy(model_file(), tmp_path / entry.file_name)
    settings.MODEL, settings.MODELS_DIR = entry.slug, tmp_path
    settings.GENERATION_FINISHED = "tests.contract.conftest.nothing_follows"
    made = Site(site_environment, MODEL=entry.slug, MODELS_DIR=str(tmp_path), **SMALL_REAL)
    yield made
    made.close()


def send(user: User, count: int, question: str = "count 60 pace=40") -> list[Recorder]:
    """As people do: each gets the release that is served now."""
    found = [Release.objects.serving(user) for _ in range(count)]
    return [ask(user, release, question, max_tokens=200) for release in found if release]


def test_twenty_answers_under_way_survive_a_promotion_and_a_roll_back(
    site: Site, alice: User, release: Release, other_release: Release
):
    site.until_ready(release)
    old = send(alice, 20)  # eight of them run, the others wait
    old[0].read_until(20)
    other_release.promote("test")
    new = send(alice, 10)
    site.until(lambda: all(r.run.log.text() for r in new[:3]), "the new release's first words")
    assert Generation.objects.filter(release=release).active().exists()  # both answer at once
    release.model.roll_back("test")
    back = send(alice, 5)
    everything = [*old, *new, *back]

    def ended() -> bool:
        return not Generation.objects.active().exists()

    site.until(ended, "every answer")
    assert {reader.read_to_the_end() for reader in everything} == {COUNTED}
    assert {reader.kind for reader in everything} == {"done"}
    arms = [Generation.objects.get(pk=r.run.pk).arm for r in everything]
    assert arms == ["simulated v1"] * 20 + ["simulated v2"] * 10 + ["simulated v1"] * 5
    site.until(lambda: len(site.crew.processes) == 1, "the unneeded worker to end")
    assert Worker.objects.living().get().release == release


@pytest.mark.real_model
def test_answers_survive_a_switch_between_two_formats_of_a_real_models_weights(
    real_site: Site, alice: User, tmp_path: Path
):
    first = register(CATALOGUE["smollm2-135m-instruct"])
    make(tmp_path / first.weights_file, "Q8_0", tmp_path / "eight.gguf")
    second = first.model.add_release(tmp_path / "eight.gguf", "test")
    question = "Write about the sea in three sentences."
    real_site.until_ready(first)
    old = send(alice, 6, question)
    old[0].read_until(20)
    second.promote("test")
    new = send(alice, 3, question)
    real_site.until(lambda: bool(new[0].run.log.text()), "the new release's first words")
    first.model.roll_back("test")
    everything = [*old, *new, *send(alice, 3, question)]
    real_site.until(lambda: not Generation.objects.active().exists(), "every answer", 120)
    texts = [reader.read_to_the_end() for reader in everything]
    assert {reader.kind for reader in everything} == {"done"}
    # The same question and seed: each release says its own, whatever was switched meanwhile.
    assert len(set(texts[:6] + texts[9:])) == len(set(texts[6:9])) == 1
    assert texts[0] != texts[6]


def test_a_warmed_release_is_loaded_before_anybody_gets_it(
    site: Site, alice: User, release: Release, other_release: Release
):
    other_release.warm("test")
    site.until_ready(other_release)
    site.until_ready(release)
    other_release.promote("test")
    asked_at = time.monotonic()
    (reader,) = send(alice, 1)
    site.until(lambda: bool(reader.run.log.text()), "its first word")
    assert time.monotonic() - asked_at < 3  # generous: no process was started
    assert Generation.objects.get().release == other_release


def test_a_run_left_on_an_old_release_gets_a_worker_of_its_own(
    site: Site, alice: User, release: Release, other_release: Release
):
    other_release.promote("test")
    site.until_ready(other_release)
    late = ask(alice, release, "count 5")  # a send that had read what was served just before
    site.until(lambda: not Generation.objects.active().exists(), "its answer")
    assert late.read_to_the_end() == "1 2 3 4 5"


def test_a_promoted_release_that_cannot_be_loaded_gives_way_and_its_questions_are_answered(
    site: Site, alice: User, release: Release
):
    broken = Release.objects.create(
        model=release.model, version=2, engine="llama_cpp", context_tokens=512,
        weights_file="not-there.gguf", weights_sha256="1" * 64,
    )  # fmt: skip
    site.until_ready(release)
    broken.promote("test")
    readers = send(alice, 3)
    site.until(lambda: not Generation.objects.active().exists(), "the answers")
    assert {reader.read_to_the_end() for reader in readers} == {COUNTED}
    assert Release.objects.serving() == release
    assert "not-there.gguf cannot be read" in broken.last_fault()
