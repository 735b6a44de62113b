"""The real model: killed at random tokens or not, the answer is the same, byte for byte."""

import random
from typing import Any

import pytest
from django.conf import settings as site_settings

from accounts.models import User
from inference.models import Generation, Release
from tests.faults.workers import ALL, Recorder, Workers, ask, of_all

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.real_model]

ON_SQLITE = "sqlite" in site_settings.DATABASES["default"]["ENGINE"]
QUESTIONS = [
    "What is a river?",
    "Name three colours and say why.",
    "Tell me a story about a fox.",
    "How do I boil an egg?",
    "Why is the sky blue?",
    "Write a list of fruits.",
    "Explain gravity to a child.",
    "What is the number \N{GREEK SMALL LETTER PI}?",
]


def ask_all(user: User, release: Release, count: int) -> list[Recorder]:
    """Half of them greedy, half sampled with a seed."""
    choices: list[dict[str, Any]] = [{"temperature": 0}, {"temperature": 0.9, "seed": 11}]
    return [
        ask(user, release, QUESTIONS[n % 8], max_tokens=30, **{**choices[n % 2], "seed": n})
        for n in range(count)
    ]


def test_seeded_kills_at_random_tokens_change_no_byte(
    real_workers: Workers, alice: User, real_release: Release
):
    """`make faults`: 32 on SQLite, 18 on PostgreSQL. Each interrupts up to four answers."""
    kills, answers = (of_all(32), 12) if ON_SQLITE else (of_all(18), 8)
    answers = answers if ALL else 6
    worker = real_workers.start()
    undisturbed = [r.result(400) for r in ask_all(alice, real_release, answers)]
    draw = random.Random(7)
    readers = ask_all(alice, real_release, answers)
    done = 0
    while done < kills:
        active = [reader for reader in readers if not reader.kind] or _more(
            readers, undisturbed, alice, real_release
        )
        target = draw.choice(active[:4])
        target.read_until(len(target.text) + draw.randint(1, 12), 300)
        worker.kill()
        done += 1
        worker = real_workers.start()
        for reader in readers:
            reader.look()
    for number, reader in enumerate(readers):
        answer = reader.result(400)
        assert reader.kind == "done", Generation.objects.filter(pk=reader.run.pk).values().get()
        assert answer == undisturbed[number % answers]
    assert Generation.objects.filter(attempts__gt=1).count() >= answers // 2


def _more(
    readers: list[Recorder], undisturbed: list[tuple[str, bytes]], user: User, release: Release
) -> list[Recorder]:
    more = ask_all(user, release, len(undisturbed))
    readers.extend(more)
    return more


def test_a_second_turn_that_reused_the_first_survives_a_kill_byte_for_byte(
    real_workers: Workers, alice: User, real_release: Release
):
    """The takeover has an empty cache; what the killed worker had reused it evaluates anew."""
    first_turn = {"role": "user", "content": "Name three animals and three plants."}
    parameters = {"temperature": 0.7, "seed": 3, "max_tokens": 48}

    def two_turns(kill: bool) -> tuple[str, bytes]:
        worker = real_workers.start()
        opening = Generation.objects.enqueue(
            user=alice, release=real_release, messages=[first_turn], parameters=parameters
        )
        answer = Recorder(opening).read_to_the_end(120)
        messages = [
            first_turn,
            {"role": "assistant", "content": answer},
            {"role": "user", "content": "Tell me more about the second one."},
        ]
        reader = Recorder(
            Generation.objects.enqueue(
                user=alice, release=real_release, messages=messages, parameters=parameters
            )
        )
        reader.read_until(60, 120)
        if kill:
            worker.kill()
            worker = real_workers.start()
        result = reader.result(120)
        if not kill:
            reader.run.refresh_from_db()
            opening.refresh_from_db()
            reused = reader.run.cached_tokens > opening.completion_tokens
            assert reused, "the first answer was not reused"
        worker.kill()
        return result

    assert two_turns(kill=True) == two_turns(kill=False)
