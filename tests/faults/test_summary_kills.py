"""A worker killed around a summary: whoever takes over arrives at the same prompt."""

from collections.abc import Callable

import pytest

from accounts.models import User
from inference.models import Generation, Release
from tests.faults.workers import Recorder, Workers

pytestmark = pytest.mark.django_db(transaction=True)
LONG = "river " * 2000
COUNT = "count 60 pace=300"


def ask(user: User, release: Release) -> Recorder:
    texts = (LONG, LONG, COUNT)
    messages = [{"role": ("user", "assistant")[n % 2], "content": t} for n, t in enumerate(texts)]
    run = Generation.objects.enqueue(
        user=user, release=release, messages=messages, parameters={"seed": 1}
    )
    return Recorder(run)


def facts(reader: Recorder) -> tuple[object, ...]:
    """The whole text, and what the prompt was."""
    text = reader.read_to_the_end()
    run = Generation.objects.select_related("prompt").get(pk=reader.run.pk)
    return text, run.prompt.sha256, run.prompt.summary, run.prompt.left_out, run.summary_tokens


@pytest.mark.parametrize("window", ["fitted", "prefill", "before_append", "after_append@3"])
def test_a_takeover_uses_the_summary_it_finds(
    start_workers: Callable[..., Workers], alice: User, release: Release, window: str
):
    """The one who takes over would make none of its own: the setting is off for it."""
    summarising = start_workers(release, SUMMARISE_LEFT_OUT="1")
    worker = summarising.start()
    undisturbed = facts(ask(alice, release))
    assert undisturbed[2]
    worker.kill()
    reader = ask(alice, release)
    killed = summarising.start(f"{window}:kill")
    killed.wait_until_dead()
    killed.bury()
    start_workers(release).start()
    assert facts(reader) == undisturbed


def test_an_answer_begun_without_a_summary_goes_on_without_one(
    start_workers: Callable[..., Workers], alice: User, release: Release
):
    reader = ask(alice, release)
    killed = start_workers(release).start("after_append@3:kill")
    killed.wait_until_dead()
    killed.bury()
    start_workers(release, SUMMARISE_LEFT_OUT="1").start()
    text, _, summary, left_out, _ = facts(reader)
    assert (str(text).split()[-1], summary, left_out) == ("60", "", 2)


def test_a_summary_that_was_cut_off_is_made_again(
    start_workers: Callable[..., Workers], alice: User, release: Release
):
    """Killed before it was stored: nobody has seen anything of it yet."""
    workers = start_workers(release, SUMMARISE_LEFT_OUT="1")
    worker = workers.start()
    undisturbed = facts(ask(alice, release))
    worker.kill()
    reader = ask(alice, release)
    killed = workers.start("before_fitted:kill")
    killed.wait_until_dead()
    killed.bury()
    workers.start()
    assert facts(reader) == undisturbed
