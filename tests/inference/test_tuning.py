"""Which weight format is proposed, and what is made of the measurements."""

import io
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from django.core.management import CommandError, call_command

from inference.catalogue import CATALOGUE, register
from inference.models import Model, Release, ReleaseEvent
from inference.tuning import tune
from inference.tuning.formats import path_of
from inference.tuning.measure import Figures
from inference.tuning.tune import Row, propose, table


def row(name: str, speed: float, divergence: float) -> Row:
    speeds = {1: speed, 4: speed, 16: speed}
    return Row(name, Path(name), Figures(speeds, 100.0, 1.0, 10**8, 17.0, divergence, 0.9))


def test_the_fastest_is_proposed_among_those_that_say_nearly_the_same():
    rows = [row("as it came", 50, 0), row("fine", 90, 0.05), row("rough", 200, 0.3)]
    assert propose(rows).name == "fine"


def test_the_file_as_it_came_stays_where_nothing_is_near_it():
    assert propose([row("as it came", 50, 0), row("rough", 200, 0.3)]).name == "as it came"
    assert propose([row("as it came", 50, 0), row("slow", 40, 0.01)]).name == "as it came"


def test_what_a_format_loses_has_to_be_worth_it():
    assert propose([row("as it came", 100, 0), row("hardly", 104, 0.08)]).name == "as it came"
    assert propose([row("as it came", 100, 0), row("much", 130, 0.08)]).name == "much"
    assert propose([row("as it came", 100, 0), row("the same", 104, 0.001)]).name == "the same"


def test_the_table_marks_the_best():
    rows = [row("as it came", 50, 0), row("fine", 90, 0.05)]
    lines = table(rows, rows[1])
    assert [line.endswith("best") for line in lines] == [False, False, True]


def test_files_of_formats_lie_where_no_pull_can_put_a_file_that_would_be_taken_for_one():
    made = Path("/m/tuned/a.Q4_1.IQ4_NL-Q8_0.gguf")
    assert path_of(Path("/m/a.Q4_1.gguf"), "IQ4_NL+Q8_0") == made


@pytest.fixture
def tuned(settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, db: None) -> Release:
    """The default model in a folder of its own; measurements are made up, files are made."""
    entry = CATALOGUE["smollm2-135m-instruct"]
    source = Path(settings.MODELS_DIR) / entry.file_name
    settings.MODELS_DIR = settings.DATA_DIR = tmp_path
    (tmp_path / entry.file_name).symlink_to(source)

    def made_up(name: str, path: Path, reference: Path, most: float | None) -> Row:
        assert path.exists()
        return Row(name, path, row(name, 90 if path != reference else 50, 0.01).figures)

    monkeypatch.setattr(tune, "_measured", made_up)
    return register(entry)


def run(*words: str) -> str:
    out = io.StringIO()
    call_command("models", "tune", "smollm2-135m-instruct", *words, stdout=out)
    return out.getvalue()


@pytest.mark.real_model
def test_tuning_makes_a_file_records_a_release_and_proposes_it(tuned: Release, tmp_path: Path):
    said = run("--formats", "Q8_0")
    made = Release.objects.get(version=2)
    assert made.weights_path.read_bytes()[:4] == b"GGUF"
    assert (made.state, made.parameters) == ("candidate", tuned.parameters)
    assert "promote smollm2-135m-instruct@2" in said
    saved = tmp_path / "tuning" / "smollm2-135m-instruct.json"
    assert json.loads(saved.read_text())["best"] == "Q8_0"
    plot = saved.with_suffix(".svg").read_text()
    assert "<script" not in plot
    ET.fromstring(plot)
    run("--formats", "Q8_0", "--promote")
    assert list(Release.objects.filter(state="live")) == [made]


@pytest.mark.real_model
def test_a_file_that_was_copied_here_instead_of_pulled_is_registered_and_tuned(tuned: Release):
    ReleaseEvent.objects.all().delete()
    Release.objects.all().delete()
    Model.objects.all().delete()
    run("--formats", "Q8_0")
    assert [release.version for release in Release.objects.order_by("version")] == [1, 2]


def test_an_unknown_format_is_refused_by_name(tuned: Release):
    with pytest.raises(CommandError, match="Unknown format: Q9"):
        run("--formats", "Q9")


def test_a_model_without_a_file_cannot_be_tuned(release: Release):
    with pytest.raises(CommandError, match="no model file here"):
        call_command("models", "tune", "simulated")


@pytest.mark.real_model
def test_make_run_takes_the_faster_format_once(tuned: Release, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tune, "QUICK", ("Q8_0",))
    assert "v2 is live" in run("--quick")
    assert run("--quick") == ""


def test_make_run_changes_nothing_that_somebody_has_chosen(tuned: Release, tmp_path: Path):
    tuned.model.add_release(tuned.weights_path, "somebody", sha256="0" * 64).promote("somebody")
    assert run("--quick") == ""
    assert not (tmp_path / "tuning").exists()


def test_make_run_goes_on_with_the_file_as_it_came_if_it_takes_too_long(
    tuned: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tune, "QUICK_SECONDS", 0.05)
    said = run("--quick")
    assert "took more than" in said
    assert "as it came" in said
    assert [release.state for release in Release.objects.all()] == ["live"]
    assert not list(tmp_path.glob("*.part"))
    assert run("--quick") == ""  # nor is it tried at every start
