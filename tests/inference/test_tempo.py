"""How much of a prompt is read between two steps, so that nobody waits long for either."""

import pytest

from inference.engines.batching import (
    BEGINNING,
    CHUNK,
    GAP_STEPS,
    LEAST_STEPS,
    SMALLEST_CHUNK,
    Tempo,
)


def chunks(
    tempo: Tempo, number: int, *, step: float, token: float, answering: int = 4,
    weight: float = 1.0, calm: bool = True,
) -> list[int]:  # fmt: skip
    """Their sizes on a machine with these speeds, in seconds."""
    sizes = []
    for _ in range(number):
        tempo.step_took(step, answering, calm)
        sizes.append(tempo.chunk(weight))
        tempo.chunk_took(token * (BEGINNING + sizes[-1]), sizes[-1])
    return sizes


def test_with_a_chunk_between_them_two_tokens_are_about_three_steps_apart():
    sizes = chunks(Tempo(), 30, step=0.020, token=0.001)
    assert sizes[0] == SMALLEST_CHUNK  # nothing is known yet
    gap = 0.020 + (BEGINNING + sizes[-1]) * 0.001
    assert 0.9 * GAP_STEPS * 0.020 < gap < GAP_STEPS * 0.0201


def test_while_steps_get_longer_chunks_get_shorter_and_the_gap_stays_the_same():
    tempo = Tempo()
    chunks(tempo, 60, step=0.020, token=0.001)
    size = chunks(tempo, 60, step=0.021, token=0.001, calm=False)[-1]
    gap = 0.021 + (BEGINNING + size) * 0.001
    assert 0.9 * GAP_STEPS * 0.020 < gap < GAP_STEPS * 0.0201
    size = chunks(tempo, 60, step=0.090, token=0.002, calm=False)[-1]
    assert (BEGINNING + size) * 0.002 > 0.9 * LEAST_STEPS * 0.090  # a prompt gets on


def test_without_a_calm_step_of_these_answers_those_beside_the_prompt_are_taken():
    sizes = chunks(Tempo(), 30, step=0.020, token=0.001, calm=False)
    assert sizes[-1] == chunks(Tempo(), 30, step=0.020, token=0.001)[-1]


def test_prompts_go_first_when_more_wait_for_them_than_for_their_next_token():
    few = chunks(Tempo(), 30, step=0.020, token=0.002)[-1]
    many = chunks(Tempo(), 30, step=0.020, token=0.002, weight=2.0)[-1]
    assert many + BEGINNING >= 1.9 * (few + BEGINNING)


@pytest.mark.parametrize(("token", "size"), [(0.1, SMALLEST_CHUNK), (1e-6, CHUNK)])
def test_a_prompt_gets_on_however_slowly_it_is_read_and_not_by_more_than_a_chunk(token, size):
    assert chunks(Tempo(), 30, step=0.010, token=token)[-1] == size


def test_other_answers_than_before_are_measured_anew():
    tempo = Tempo()
    chunks(tempo, 20, answering=1, step=0.005, token=0.002)
    wanted = round((GAP_STEPS - 1) * 20) - BEGINNING
    wanted -= wanted % SMALLEST_CHUNK  # what the kernels take at once
    assert chunks(tempo, 1, answering=16, step=0.040, token=0.002) == [wanted]


def test_one_slow_call_is_soon_forgotten():
    tempo = Tempo()
    before = chunks(tempo, 30, step=0.030, token=0.001)[-1]
    tempo.chunk_took(0.3, 32)
    assert tempo.chunk() < before
    assert chunks(tempo, 30, step=0.030, token=0.001)[-1] >= before - 1
