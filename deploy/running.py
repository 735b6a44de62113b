"""Programs run quietly, with one line that moves; why one failed, in a sentence."""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = Path(os.environ.get("VENV", ROOT / ".venv")).resolve()
LOG = VENV / "install.log"


class Problem(Exception):
    """One sentence that says what is wrong and one that says what to do."""


class Progress:
    """One line that shows what goes on and for how long; on a pipe, a line now and then."""

    PERCENT = re.compile(r"\[\s*(\d+)%\]")
    COUNT = re.compile(r"^\s*\[(\d+)/(\d+)\]")
    PACKAGE = re.compile(
        r"^\s*(?:Collecting|Downloading|Building wheel for|Installing) (?!collected)(\S+)"
    )

    def __init__(self, title: str) -> None:
        self.title, self.detail = title, ""
        self.started = time.monotonic()
        self.on_terminal = sys.stdout.isatty()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> "Progress":
        self.thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.ended.set()
        self.thread.join()
        word = "failed" if kind else "done"
        self._show(f"{self.title}: {word} after {self._elapsed()}", last=True)

    def read(self, line: str) -> None:
        """Take the step from a line of pip, CMake or Ninja."""
        if match := self.PERCENT.search(line):
            self.detail = f"compiling [{int(match[1]):3d}%]"
        elif match := self.COUNT.search(line):
            self.detail = f"compiling [{100 * int(match[1]) // int(match[2]):3d}%]"
        elif match := self.PACKAGE.search(line):
            self.detail = match[1][:40]

    def _tick(self) -> None:
        while not self.ended.wait(0.5 if self.on_terminal else 10):
            self._show(f"{self.title}: {self._elapsed()}  {self.detail}")

    def _elapsed(self) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self.started), 60)
        return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"

    def _show(self, text: str, last: bool = False) -> None:
        if self.on_terminal:
            print(f"\r\033[K{text}", end="\n" if last else "", flush=True)
        else:
            print(text, flush=True)


def run(title: str, command: Iterable[str | Path], **environment: str) -> None:
    """Run a program quietly with a progress line; its whole output goes to the log."""
    words = [str(word) for word in command]
    with Progress(title) as progress, LOG.open("a", encoding="utf-8") as log:
        log.write(f"\n$ {' '.join(words)}\n")
        process = subprocess.Popen(
            words,
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        assert process.stdout is not None
        tail: list[str] = []
        for line in process.stdout:
            log.write(line)
            progress.read(line)
            tail = [*tail[-79:], line]
        if process.wait():
            raise Problem(explain(title, "".join(tail)))


REASONS = {
    "No space left on device": "The disk is full. Free some space and try again.",
    "database or disk is full": "The disk is full. Free some space and try again.",
    "readonly database": "The database in DATA_DIR may only be read. Mend the rights.",
    "file is not a database": "The database file in DATA_DIR is damaged. Restore a copy of it.",
    "DO NOT MATCH THE HASHES": "A downloaded package is not the one this version was tested "
    "with. Nothing was installed from it.",
    "No matching distribution found for torch": "The package index has no PyTorch for the CPU. "
    "Name one that has in PIP_EXTRA_INDEX_URL.",
    "Temporary failure in name resolution": "The package index cannot be reached. "
    "Check the network and try again.",
    "NewConnectionError": "The package index cannot be reached. Check the network and try again.",
    "EAI_AGAIN": "The npm registry cannot be reached. Check the network and try again.",
    "CMAKE_CXX_COMPILER": "The C++ compiler does not work. Install a complete one "
    "(Debian, Ubuntu: apt-get install build-essential).",
    "Killed signal terminated program": "The compiler ran out of memory; 2 GB are enough.",
}


def explain(title: str, output: str) -> str:
    """The sentence for a failure we know, else where to read on."""
    for symptom, reason in REASONS.items():
        if symptom in output:
            return f"{reason} (The whole output is in {LOG}.)"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    last = lines[-1] if lines else "no output"
    return f"“{title}” failed: {last} (The whole output is in {LOG}.)"
