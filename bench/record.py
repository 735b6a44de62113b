"""Prints a benchmark's figures as tables and saves them under bench/results/."""

import datetime as dt
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
LOAD_BEFORE = os.getloadavg()


def machine() -> dict[str, Any]:
    facts = _facts("/proc/cpuinfo")
    flags = facts.get("flags", "").split()
    return {
        "cpu": facts.get("model name", ""),
        "cores": os.cpu_count(),
        "AVX2": "avx2" in flags,
        "AVX-512": "avx512f" in flags,
        "memory": _facts("/proc/meminfo").get("MemTotal", ""),
        "python": platform.python_version(),
    }


def commit() -> str:
    """With a + where files were changed since."""
    command = ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    said = subprocess.run(command, cwd=RESULTS.parent, capture_output=True, text=True, check=False)
    return said.stdout.strip()


def _facts(path: str) -> dict[str, str]:
    lines = Path(path).read_text().splitlines() if Path(path).exists() else []
    pairs = [line.split(":", 1) for line in lines if ":" in line]
    return {name.strip(): value.strip() for name, value in pairs}


def record(name: str, figures: dict[str, Any], note: str = "") -> Path:
    """A figure that is a dictionary of rows is a table. Returns the file."""
    for key, value in figures.items():
        if isinstance(value, dict):
            _print_table(key, value)
        else:
            print(f"{key:<52} {value}")
    day = dt.datetime.now(tz=dt.UTC).date().isoformat()
    RESULTS.mkdir(exist_ok=True)
    load = {"before": LOAD_BEFORE, "after": os.getloadavg()}
    body = {"date": day, "commit": commit(), "machine": machine(), "load averages": load}
    body |= {"note": note, "figures": figures}
    file = RESULTS / f"{day}-{name}.json"
    file.write_text(json.dumps(body, indent=2, ensure_ascii=False) + "\n")
    return file


def _print_table(title: str, rows: dict[str, dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    widths = [max(len(column), 8) for column in columns]
    first = max(map(len, rows), default=0)
    print(f"\n{title}\n{'':<{first}}", *(f"{c:>{w}}" for c, w in zip(columns, widths, strict=True)))
    for name, row in rows.items():
        cells = [f"{row.get(c, '')!s:>{w}}" for c, w in zip(columns, widths, strict=True)]
        print(f"{name:<{first}}", *cells)
