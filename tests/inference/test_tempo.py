"""How much of a prompt is read between two steps, so that nobody waits long for either."""

import pytest

from inference.engines.batching import BEGINNING, CHUNK, SMALLEST_CHUNK, STALL_STEPS, Tempo


def chunks(
    tempo: Tempo, number: int, *, step: float, token: float, answering: int = 4, weight: float = 1.0
) -> list[int]:
    """Their sizes on a machine with these speeds, in seconds."""
    sizes = []
    for _ in range(number):
        tempo.step_took(step, answering)
        sizes.append(tempo.chunk(weight))
        tempo.chunk_took(token * (BEGINNING + sizes[-1]), sizes[-1])
    return sizes


def test_a_chunk_holds_the_others_up_for_less_than_a_step():
    sizes = chunks(Tempo(), 30, step=0.020, token=0.001)
    assert sizes[0] == SMALLEST_CHUNK  # nothing is known yet
    took = (BEGINNING + sizes[-1]) * 0.001
    assert 0.9 * STALL_STEPS * 0.020 < took <= STALL_STEPS * 0.020


def test_prompts_go_first_when_more_wait_for_them_than_for_their_next_token():
    few = chunks(Tempo(), 30, step=0.020, token=0.001)[-1]
    many = chunks(Tempo(), 30, step=0.020, token=0.001, weight=2.0)[-1]
    assert many + BEGINNING >= 1.9 * (few + BEGINNING)


@pytest.mark.parametrize(("token", "size"), [(0.1, SMALLEST_CHUNK), (1e-6, CHUNK)])
def test_a_prompt_gets_on_however_slowly_it_is_read_and_not_by_more_than_a_chunk(token, size):
    assert chunks(Tempo(), 30, step=0.010, token=token)[-1] == size


def test_other_answers_than_before_are_measured_anew():
    tempo = Tempo()
    chunks(tempo, 20, answering=1, step=0.005, token=0.001)
    assert chunks(tempo, 1, answering=16, step=0.040, token=0.001) == [29]


def test_one_slow_call_is_soon_forgotten():
    tempo = Tempo()
    before = chunks(tempo, 30, step=0.030, token=0.001)[-1]
    tempo.chunk_took(0.3, 32)
    assert tempo.chunk() < before
    assert chunks(tempo, 30, step=0.030, token=0.001)[-1] >= before - 1
