"""`manage.py models tune`: which weight format is best for a model on this machine."""

import json
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
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
        "--quick", action="store_true", help="try the likeliest format only, once, and promote it"
    )


def tune(say: Callable[[str], Any], model: Model, by: str, **options: Any) -> None:
    """Make the formats, measure and record them, and say which is best. Raises EngineError."""
    reference = _as_it_came(model)
    saved = Path(settings.DATA_DIR) / "tuning" / f"{model.slug}.json"
    if options["quick"] and saved.exists():
        return
    names = QUICK if options["quick"] else _names(options["formats"])
    rows = [_measured("as it came", reference.weights_path, reference.weights_path)]
    rows += [_made(name, reference.weights_path) for name in names]
    best = propose(rows)
    for line in table(rows, best):
        say(line)
    releases = {row.name: _release(model, reference, row, by) for row in rows}
    _save(saved, rows, best)
    say(f"Saved as {saved} and {saved.with_suffix('.svg')}.")
    chosen = releases[best.name]
    if options["promote"] or options["quick"]:
        chosen.promote(by)
        say(f"Release {chosen} ({best.name}) is live.")
    else:
        say(f"Best here: {best.name}. To let people get it:")
        say(f"./manage.py models promote {chosen.name}")


def _as_it_came(model: Model) -> Release:
    """The model's first release with a file: what the other formats are made from."""
    found = model.releases.filter(engine="llama_cpp").order_by("version").first()
    if found is None or not found.weights_path.exists():
        raise EngineError(f"{model.slug} has no model file here that could be tuned.")
    return found


def _names(asked: str | None) -> Sequence[str]:
    names = asked.split(",") if asked else list(FORMATS)
    if unknown := set(names) - set(FORMATS):
        raise EngineError(f"Unknown format: {', '.join(sorted(unknown))}.")
    return names


def _made(name: str, reference: Path) -> Row:
    path = path_of(reference, name)
    if not path.exists():
        part = path.with_suffix(".part")
        try:
            _child(f"Making {name}", "inference.tuning.formats", str(reference), name, str(part))
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    return _measured(name, path, reference)


def _measured(name: str, path: Path, reference: Path) -> Row:
    told = json.loads(_child(f"Measuring {name}", "inference.tuning.measure", path, reference))
    speeds = {int(streams): speed for streams, speed in told.pop("tokens_per_second").items()}
    return Row(name, path, Figures(tokens_per_second=speeds, **told))


def _child(title: str, module: str, *words: str | Path) -> str:
    """Run it with a progress bar over the percents it prints; its last line."""
    command = [sys.executable, "-m", module, *map(str, words)]
    with (
        tqdm(total=100, desc=title, unit="%", file=sys.stderr, leave=False) as bar,
        subprocess.Popen(
            command, cwd=BASE_DIR, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process,
    ):
        last = ""
        for line in process.stdout or ():
            last = line.strip()
            if last.isdigit():
                bar.update(int(last) - bar.n)
        errors = (process.stderr.read() if process.stderr else "").strip().splitlines()
    if process.returncode:
        raise EngineError(f"{title} failed: {errors[-1] if errors else process.returncode}")
    return last


def propose(rows: Sequence[Row]) -> Row:
    """The fastest of those that say nearly the same as the file as it came."""
    near = [row for row in rows if row.figures.divergence <= MOST_DIVERGENCE]
    return max(near or rows[:1], key=lambda row: row.speed)


def table(rows: Sequence[Row], best: Row) -> list[str]:
    streams = list(rows[0].figures.tokens_per_second)
    head = "".join(f"{f'{n} streams':>12}" for n in streams)
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


def _release(model: Model, reference: Release, row: Row, by: str) -> Release:
    if row.path == reference.weights_path:
        return reference
    return model.add_release(
        row.path,
        by,
        sha256=sha256_of(row.path),
        context_tokens=reference.context_tokens,
        parameters=reference.parameters,
    )


def _save(path: Path, rows: Sequence[Row], best: Row) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    told = {row.name: asdict(row.figures) for row in rows}
    path.write_text(json.dumps({"best": best.name, "formats": told}, indent=2) + "\n")
    speeds = {row.name: row.figures.tokens_per_second for row in rows}
    draw(path.with_suffix(".svg"), speeds, "tokens per second", path.stem)
