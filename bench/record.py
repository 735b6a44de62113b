"""Prints a benchmark's figures as a table and saves them under bench/results/."""

import datetime as dt
import json
import os
import platform
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


def machine() -> dict[str, Any]:
    model = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if "model name" in line), ""
    )
    return {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version()}


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def record(name: str, figures: dict[str, Any], note: str = "") -> None:
    for key, value in figures.items():
        print(f"{key:<52} {value}")
    day = dt.datetime.now(tz=dt.UTC).date().isoformat()
    RESULTS.mkdir(exist_ok=True)
    body = {"date": day, "machine": machine(), "note": note, "figures": figures}
    (RESULTS / f"{day}-{name}.json").write_text(json.dumps(body, indent=2) + "\n")
