"""Answers of the real model, made side by side by a real worker, each made again alone."""

import asyncio
from typing import Any

import pytest
from django.conf import settings as site_settings

from accounts.models import User
from inference.engines.base import Engine
from inference.models import Generation, Release
from inference.replay import Verdict, prepared, replayed
from inference.tokenlog import pack, unpack
from tests.faults.test_real_model_kills import QUESTIONS
from tests.faults.workers import Recorder, Workers, ask

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.real_model]

ANSWERS = 20 if "sqlite" in site_settings.DATABASES["default"]["ENGINE"] else 6
SHORT = {"max_tokens": 32}
SAMPLINGS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0.9},
    {"temperature": 1.2, "top_k": 0, "top_p": 1, "min_p": 0.1},
    {"temperature": 0, "repeat_penalty": 1, "stop": ["."]},
    {"frequency_penalty": 0.6, "presence_penalty": 0.3, "logprobs": 2},
]


@pytest.fixture
def here(settings: Any) -> None:
    """This process computes as the workers of these tests do."""
    settings.WORKER_THREADS, settings.WORKER_SLOTS, settings.CONTEXT_TOKENS = 1, 4, 512


def made_again(release: Release) -> dict[Any, Verdict]:
    """The verdicts on every run, by its key."""
    runs = list(Generation.objects.select_related("prompt", "release__model"))
    engine = prepared(release)

    async def all_of_them(engine: Engine) -> dict[Any, Verdict]:
        await engine.start(lambda percent: None)
        try:
            return {verdict.run.pk: verdict async for verdict in replayed(engine, runs)}
        finally:
            await engine.stop()

    return asyncio.run(all_of_them(engine))


def lengthened(run: Generation) -> Recorder:
    again = {"messages": run.prompt.messages, "parameters": run.prompt.parameters}
    return Recorder(
        Generation.objects.enqueue(user=run.user, release=run.release, lengthens=run, **again)
    )


def test_answers_made_side_by_side_are_identical_alone_and_a_changed_one_is_found(
    real_workers: Workers, alice: User, real_release: Release, here: None
):
    """Some are killed in the middle and taken over, one is stopped, one is lengthened."""
    worker = real_workers.start()
    readers = [
        ask(alice, real_release, QUESTIONS[n % 8], **{**SAMPLINGS[n % 5], "seed": n, **SHORT})
        for n in range(ANSWERS - 1)
    ]
    readers[0].read_until(20)
    worker.kill()
    real_workers.start()
    readers[1].read_until(40)
    readers[1].run.cancel()
    for reader in readers:
        reader.read_to_the_end(120)
    readers.append(lengthened(Generation.objects.get(pk=readers[0].run.pk)))
    readers[-1].read_to_the_end(120)
    changed = Generation.objects.get(pk=readers[2].run.pk)
    ids = list(unpack(bytes(changed.token_ids)))
    ids[5] = ids[4]
    Generation.objects.filter(pk=changed.pk).update(token_ids=pack(ids))
    verdicts = made_again(real_release)
    difference = verdicts.pop(changed.pk)
    assert difference.says.startswith(f"Token 6 of {len(ids)} was ")
    assert [v for v in verdicts.values() if v.kind != "identical" or v.notes] == []
    assert len(verdicts) == ANSWERS - 1
    assert Generation.objects.filter(attempts__gt=1).exists()
    assert Generation.objects.get(pk=readers[-1].run.pk).inherited_tokens > 0
