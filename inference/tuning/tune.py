"""`manage.py models tune`: which weight format is best for a model on this machine."""

import json
import signal
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import exp, prod
from pathlib import Path
from threading import Timer
from typing import Any

from django.conf import settings
from tqdm import tqdm

from inference.engines.base import EngineError
from inference.hashes import sha256_of
from inference.models import Release
from inference.releases import Model
from inference.tuning.formats import FORMATS, path_of
from inference.tuning.measure import DEPTH, Figures
from inference.tuning.plot import draw

BASE_DIR = Path(settings.BASE_DIR)
QUICK = ("IQ4_NL+Q8_0",)
QUICK_SECONDS = 60.0  # for each thing made or measured; a large model is left as it came
PRICE = 2.0  # percent of speed for each hundredth of a nat
MOST_DIVERGENCE = 0.1  # nats a token from the file as it came: what a faster default may cost


@dataclass(frozen=True, slots=True)
class Row:
    """A format that was measured. The file as it came has the name "as it came"."""

    name: str
    path: Path
    figures: Figures

    @property
    def speed(self) -> float:
        """One number to compare by: the geometric mean of steps and of reading prompts."""
        figures = self.figures
        speeds = [*figures.tokens_per_second.values(), 1000 * DEPTH / figures.first_token_ms]
        return float(prod(speeds) ** (1 / len(speeds)))


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model")
    parser.add_argument("--formats", help=f"of {', '.join(FORMATS)}; all, if not given")
    parser.add_argument("--promote", action="store_true", help="let people get the best one")
    parser.add_argument(
        "--quick", action="store_true",
        help="try the likeliest format only, once in the model's life, and promote the better one",
    )  # fmt: skip


def tune(say: Callable[[str], Any], model: Model, by: str, **options: Any) -> None:
    """Make the formats, measure and record them, and say which is best. Raises EngineError."""
    saved = Path(settings.DATA_DIR) / "tuning" / f"{model.slug}.json"
    if options["quick"]:
        _tune_quickly(say, model, by, saved)
        return
    reference = _as_it_came(model)
    rows = _rows(reference.weights_path, _names(options["formats"]))
    chosen = _conclude(say, reference, rows, by, saved)
    if options["promote"]:
        chosen.promote(by)
        say(f"Release {chosen} is live.")
    else:
        say(f"To let people get it: ./manage.py models promote {chosen.name}")


def _tune_quickly(say: Callable[[str], Any], model: Model, by: str, saved: Path) -> None:
    """What `make run` does. It fails harmlessly, and touches no choice that somebody has made."""
    if saved.exists() or model.releases.count() > 1:
        return
    reference = _as_it_came(model)
    say(f"Finding the faster weight format for {model.slug} here, once. It takes about a minute.")
    try:
        rows = _rows(reference.weights_path, QUICK, QUICK_SECONDS)
    except EngineError as error:
        say(f"{error} The file is used as it came.")
        _write(saved, [], "as it came")
        return
    chosen = _conclude(say, reference, rows, by, saved)
    if chosen != reference:
        chosen.promote(by)
        say(f"Release {chosen} is live.")


def _rows(reference: Path, names: Sequence[str], most: float | None = None) -> list[Row]:
    """The file as it came and formats made from it; `most`: seconds for each thing done."""
    rows = [_measured("as it came", reference, reference, most)]
    return rows + [_made(name, reference, most) for name in names]


def _conclude(
    say: Callable[[str], Any], reference: Release, rows: Sequence[Row], by: str, saved: Path
) -> Release:
    """Show, record and save; the best one's release."""
    best = propose(rows)
    for line in table(rows, best):
        say(line)
    releases = {row.name: _release(reference, row, by) for row in rows}
    _write(saved, rows, best.name)
    say(f"Saved as {saved} and {saved.with_suffix('.svg')}. Best here: {best.name}.")
    return releases[best.name]


def _as_it_came(model: Model) -> Release:
    """The model's first release with a file: what the other formats are made from."""
    found = model.releases.filter(engine="llama_cpp").order_by("version").first()
    if found is None or not found.weights_path.exists():
        raise EngineError(f"{model.slug} has no model file here that could be tuned.")
    return found


def _names(asked: str | None) -> Sequence[str]:
    names = asked.split(",") if asked else list(FORMATS)
    if unknown := set(names) - set(FORMATS):
        known = ", ".join(FORMATS)
        raise EngineError(f"Unknown format: {', '.join(sorted(unknown))}. Known: {known}")
    return names


def _made(name: str, reference: Path, most: float | None) -> Row:
    path = path_of(reference, name)
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        part = path.with_suffix(".part")
        try:
            words = (str(reference), name, str(part))
            _child(f"Making {name}", "inference.tuning.formats", *words, most=most)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    return _measured(name, path, reference, most)


def _measured(name: str, path: Path, reference: Path, most: float | None) -> Row:
    title, module = f"Measuring {name}", "inference.tuning.measure"
    told = json.loads(_child(title, module, path, reference, most=most))
    speeds = {int(streams): speed for streams, speed in told.pop("tokens_per_second").items()}
    return Row(name, path, Figures(tokens_per_second=speeds, **told))


def _child(title: str, module: str, *words: str | Path, most: float | None) -> str:
    """Run it with a progress bar over the percents it prints; its last line.

    Raises EngineError if it fails or takes more than `most` seconds.
    """
    command = [sys.executable, "-m", module, *map(str, words)]
    with (
        tqdm(total=100, desc=title, unit="%", file=sys.stderr, leave=False) as bar,
        subprocess.Popen(
            command, cwd=BASE_DIR, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process,
        _ended_after(process, most),
    ):
        last = ""
        for line in process.stdout or ():
            last = line.strip()
            if last.isdigit():
                bar.update(int(last) - bar.n)
        errors = (process.stderr.read() if process.stderr else "").strip().splitlines()
    if process.returncode == -signal.SIGTERM and most:
        raise EngineError(f"{title} took more than {most:.0f} s.")
    if process.returncode:
        raise EngineError(
            f"{title} failed: {errors[-1].rstrip('.') if errors else process.returncode}."
        )
    return last


@contextmanager
def _ended_after(process: subprocess.Popen[str], most: float | None) -> Iterator[None]:
    timer = Timer(most or 0, process.terminate)  # out of memory, Linux kills
    if most:
        timer.start()
    try:
        yield
    except BaseException:
        process.kill()
        raise
    finally:
        timer.cancel()


def propose(rows: Sequence[Row]) -> Row:
    """The fastest of those that say nearly the same as the file as it came.

    What a format loses has to be worth it (PRICE).
    """
    near = [row for row in rows if row.figures.divergence <= MOST_DIVERGENCE]
    return max(near or rows[:1], key=lambda row: row.speed * exp(-PRICE * row.figures.divergence))


def table(rows: Sequence[Row], best: Row) -> list[str]:
    streams = list(rows[0].figures.tokens_per_second)
    head = "".join(f"{n} stream{'s' * (n > 1)}".rjust(12) for n in streams)
    lines = [
        f"{'':<14}{head}{'first token':>13}{'memory':>10}{'perplexity':>12}{'divergence':>12}",
    ]
    for row in rows:
        told = row.figures
        speeds = "".join(f"{told.tokens_per_second[n]:>8.0f} t/s" for n in streams)
        cost = f"{told.first_token_ms:>10.0f} ms{told.memory_bytes / 1e6:>7.0f} MB"
        worth = f"{told.perplexity:>12.2f}{told.divergence:>12.3f}"
        lines.append(f"{row.name:<14}{speeds}{cost}{worth}{'  best' if row is best else ''}")
    return lines


def _release(reference: Release, row: Row, by: str) -> Release:
    if row.path == reference.weights_path:
        return reference
    return reference.model.add_release(
        row.path,
        by,
        sha256=sha256_of(row.path),
        context_tokens=reference.context_tokens,
        parameters=reference.parameters,
    )


def _write(path: Path, rows: Sequence[Row], best: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    told = {row.name: asdict(row.figures) for row in rows}
    path.write_text(json.dumps({"best": best, "formats": told}, indent=2) + "\n")
    if rows:
        speeds = {row.name: row.figures.tokens_per_second for row in rows}
        draw(path.with_suffix(".svg"), speeds, "tokens per second", path.stem)
