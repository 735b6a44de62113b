"""manage.py generate: an answer on the terminal."""

import io

import pytest
from django.core.management import CommandError, call_command

from inference.models import Release

pytestmark = pytest.mark.django_db


@pytest.fixture
def simulated(settings, release: Release) -> Release:
    settings.MODEL = "simulated"
    return release


def generate(*arguments: str) -> str:
    out = io.StringIO()
    call_command("generate", *arguments, stdout=out)
    return out.getvalue()


def test_the_answer_is_written_out(simulated: Release):
    assert generate("count 5 pace=500") == "1 2 3 4 5\n"


def test_the_same_seed_writes_the_same_answer(simulated: Release):
    first, second = [generate("Tell me a story. pace=2000", "--seed", "4") for _ in range(2)]
    assert first == second != generate("Tell me a story. pace=2000", "--seed", "5")


def test_the_longest_length_is_kept(simulated: Release):
    assert generate("count 50 pace=500", "--max-tokens", "3") == "1 2\n"


def test_a_parameter_out_of_range_is_one_sentence(simulated: Release):
    with pytest.raises(CommandError, match="temperature must be"):
        generate("Hello", "--temperature", "9")


def test_no_model_says_what_to_run(db: None, settings):
    settings.MODEL = "simulated"
    with pytest.raises(CommandError, match="models pull"):
        generate("Hello")
