"""manage.py replay: what is the same, where the first difference is, and what cannot be told."""

import asyncio
import io
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from django.core.management import CommandError, call_command

from accounts.models import User
from inference.database import in_database
from inference.engines.simulated import SimulatedEngine
from inference.models import Generation, Prompt, Release
from inference.replay import replayed
from inference.tokenlog import pack, unpack
from tests.inference.test_runner import until, working

pytestmark = pytest.mark.django_db(transaction=True)
Write = Callable[..., Generation]


@pytest.fixture(autouse=True)
def _at_once(settings: Any) -> None:
    settings.SIMULATED_TOKENS_PER_SECOND = 0


@pytest.fixture
def write(alice: User, release: Release) -> Write:
    """`write("count 5")` is the run of a whole answer, made by a worker's loop."""

    async def make(text: str, fields: dict[str, Any]) -> Generation:
        engine = SimulatedEngine(tokens_per_second=0, context_tokens=fields.pop("context", 4096))
        messages = [*fields.pop("before", []), {"role": "user", "content": text}]
        async with working(engine, release):
            run: Generation = await in_database(
                lambda: Generation.objects.enqueue(
                    **{"user": alice, "release": release, "messages": messages, **fields}
                )
            )
            await until(lambda: not Generation.objects.get(pk=run.pk).is_active)
        return await in_database(Generation.objects.get, pk=run.pk)

    return lambda text, **fields: asyncio.run(make(text, fields))


def replay(*arguments: object) -> tuple[str, int]:
    """What the command says, and its exit code."""
    out = io.StringIO()
    try:
        call_command("replay", *map(str, arguments), stdout=out)
    except SystemExit as end:
        return out.getvalue(), int(end.code or 0)
    return out.getvalue(), 0


def change(run: Generation, **fields: Any) -> None:
    Generation.objects.filter(pk=run.pk).update(**fields)


def test_an_answer_made_the_same_way_again_is_identical(write: Write):
    run = write("Tell me a story.")
    said, code = replay(run.pk)
    assert f"{run.pk} simulated@1 identical: {run.completion_tokens} tokens." in said
    assert code == 0


def test_another_seed_differs_at_its_first_other_token(write: Write):
    run = write("Tell me a story.", parameters={"seed": 7})
    Prompt.objects.update(parameters={**run.prompt.parameters, "seed": 1})
    said, code = replay(run.pk)
    assert f"differs: Token 1 of {run.completion_tokens} was " in said
    assert code == 1


def test_another_token_is_named_with_its_place_and_what_stands_before_it(write: Write):
    run = write("echo one answer is quiet and long")
    ids = list(unpack(bytes(run.token_ids)))
    ids[-2] = ids[-1]
    change(run, token_ids=pack(ids))
    expected = f"Token {len(ids) - 1} of {len(ids)} was ' long' ({ids[-1]}) and is ' and' ("
    said, _ = replay(run.pk)
    assert expected in said
    assert ", after 'one answer is quiet'." in said


def test_an_answer_that_ended_sooner_differs_at_its_end(write: Write):
    run = write("echo one answer is quiet")
    change(run, token_ids=bytes(run.token_ids)[:-4])
    said, _ = replay(run.pk)
    assert "was the end and is ' quiet' (" in said


def test_another_text_of_the_same_tokens_differs_at_a_character(write: Write):
    run = write("echo one answer is quiet")
    change(run, text="one answer was quiet")
    said, code = replay(run.pk)
    assert "Character 12 of 20 is the first that differs: 'was quiet' was and 'is quiet' is" in said
    assert code == 1


def test_another_question_is_another_prompt(write: Write):
    run = write("Tell me a story.")
    Prompt.objects.update(messages=[{"role": "user", "content": "Tell me two."}])
    assert "differs: The prompt is another one: the hash of its tokens was" in replay(run.pk)[0]


def test_another_release_is_compared_too(write: Write, other_release: Release):
    run = write("Tell me a story.")
    change(run, release=other_release)
    assert "simulated@2 identical" in replay(run.pk)[0]


def test_a_stopped_answer_is_compared_as_far_as_it_goes(write: Write):
    run = write("count 30")
    change(run, status="stopped", text=run.text[:5], token_ids=bytes(run.token_ids)[: 5 * 4])
    assert "identical: 5 tokens, as far as it goes: it was stopped." in replay(run.pk)[0]
    change(run, text="1 2 4")
    assert "differs: Character 5 of 5" in replay(run.pk)[0]


def test_a_lengthened_answer_is_made_whole_from_nothing(write: Write):
    first = write("count 30", parameters={"max_tokens": 9})
    run = write("count 30", parameters={"max_tokens": 9}, lengthens=first)
    assert run.inherited_tokens == 9
    assert "identical: 18 tokens." in replay(run.pk)[0]


LONG = [{"role": "user", "content": "x" * 300}, {"role": "assistant", "content": "y" * 300}]


def test_what_was_left_out_of_the_prompt_is_left_out_again(write: Write):
    run = write("echo and so on", before=LONG, context=512)
    cut = write("echo " + "z" * 900, context=512, parameters={"max_tokens": 20})
    assert (run.prompt.left_out, cut.prompt.cut_characters > 0) == (2, True)
    assert replay(run.pk, cut.pk)[0].endswith("2 identical, 0 differs, 0 cannot be replayed.\n")


def test_an_answer_that_filled_the_memory_says_that_its_size_counts(write: Write):
    said, _ = replay(write("count 900", context=512).pk)
    assert "was the end and is" in said
    assert "It ended with the model’s memory full: CONTEXT_TOKENS has to be the same." in said


def test_a_lengthened_answer_whose_first_prompt_is_not_known_is_made_from_there(write: Write):
    first = write("count 30", before=LONG, context=2048, parameters={"max_tokens": 9})
    parameters = {**first.prompt.parameters}
    run = write("count 30", before=LONG, context=512, parameters=parameters, lengthens=first)
    said, code = replay(run.pk)
    assert "identical: 18 tokens." in said
    assert "Its first 9 tokens may be from a longer prompt: they were kept." in said
    assert code == 0


def test_the_build_that_wrote_it_is_named_when_it_is_another_one(write: Write):
    run = write("count 5")
    change(run, engine_build="simulated/0")
    said, code = replay(run.pk)
    assert "It was written by: simulated/0. Replayed by: simulated/1." in said
    assert code == 0


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"status": "running"}, "It has not ended yet."),
        (
            {"status": "failed", "finish_reason": "failed", "text": "", "token_ids": b""},
            "It ended before anything was written.",
        ),
    ],
)
def test_what_has_nothing_to_compare_says_so(write: Write, fields: Any, reason: str):
    run = write("count 5")
    change(run, **fields)
    said, code = replay(run.pk)
    assert f"cannot be replayed: {reason}" in said
    assert code == 2


def test_a_deleted_answer_says_so(write: Write):
    run = write("count 5")
    Generation.objects.all().forget()
    assert "cannot be replayed: Its words are deleted." in replay(run.pk)[0]


def test_a_model_file_that_is_gone_or_another_one_says_so(
    write: Write, release: Release, settings: Any, tmp_path: Any
):
    settings.MODELS_DIR = tmp_path
    real = Release.objects.create(
        model=release.model, version=2, engine="llama_cpp", context_tokens=512,
        weights_file="a.gguf", weights_sha256="0" * 64, weights_bytes=3,
    )  # fmt: skip
    run = write("count 5")
    change(run, release=real)
    assert "a.gguf is missing." in replay(run.pk)[0]
    (tmp_path / "a.gguf").write_bytes(b"abc")
    said, code = replay(run.pk)
    assert "a.gguf is damaged: it is not the file it should be." in said
    assert code == 2


def notes_of(run: Generation, **fields: Any) -> tuple[str, ...]:
    """Of the replay of a run like this one, but with these fields."""

    async def first() -> tuple[str, ...]:
        async for verdict in replayed(SimulatedEngine(tokens_per_second=0), [found]):
            return verdict.notes
        raise AssertionError

    found = Generation.objects.select_related("prompt", "release__model").get(pk=run.pk)
    for name, value in fields.items():
        setattr(found, name, value)
    return asyncio.run(first())


def test_of_a_server_beside_the_workers_nothing_is_promised(write: Write):
    run = write("count 5")
    sidecars = Release(engine="upstream")
    assert notes_of(run, release=sidecars) == (
        "It was written by a server: no identical replay is promised.",
    )
    assert "and begun anew on the way" in notes_of(run, release=sidecars, epoch=1)[0]


def test_a_build_that_depends_on_others_is_told_unless_each_was_alone(write: Write):
    run, real = write("count 5"), Release(engine="llama_cpp")
    alone = "CPU : LLAMAFILE = 1 | on X file=a template=b reproducible threads=1"
    told = "Its llama.cpp depends on what else is running: see REPRODUCIBLE."
    assert told in notes_of(run, release=real, engine_build="CPU : AVX2 = 1 | LLAMAFILE = 1 |")
    assert told not in notes_of(run, release=real, engine_build=alone)
    assert told not in notes_of(run, release=real, engine_build="CPU : AVX2 = 1 | kernels = 1")


def test_the_newest_answers_of_everybody_or_of_one_person(write: Write, bob: User):
    write("count 1")
    hers, his = write("count 5"), write("count 6", user=bob)
    assert replay("--last", 2)[0].startswith(str(his.pk))
    assert "2 identical" in replay("--last", 2)[0]
    assert str(hers.pk) in replay("--last", 1, "--user", "alice")[0]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "Which answers"),
        (["--user", "alice"], "Which answers"),
        ([uuid4()], "There is no generation"),
        (["--last", "3", "--user", "nobody"], "There is no user 'nobody'"),
    ],
)
def test_a_choice_that_means_nothing_is_one_sentence(
    alice: User, arguments: list[object], sentence: str
):
    with pytest.raises(CommandError, match=sentence):
        replay(*arguments)
