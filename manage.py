#!/usr/bin/env python3
"""Django's command-line entry point; uses the environment that `make run` has made."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chatsite.settings")
    if find_spec("django") is None:
        _go_to_the_environment()
    if not sys.stderr.isatty():  # into a file or a pipe, bars are redrawn now and then
        os.environ.setdefault("TQDM_MININTERVAL", "10")
    from django.core.management import execute_from_command_line

    # `migrate-store` is in migrate_store.py: Python's modules have no hyphens.
    words = [word.replace("-", "_") if place == 1 else word for place, word in enumerate(sys.argv)]
    execute_from_command_line(words if not sys.argv[1:2] or sys.argv[1][0] != "-" else sys.argv)


def _go_to_the_environment() -> None:
    """Start again with the Python that has the packages."""
    here = Path(__file__).resolve().parent
    python = Path(os.environ.get("VENV", here / ".venv")) / "bin" / "python"
    if not python.exists() or Path(sys.prefix) == python.parent.parent:
        raise SystemExit("Chatsite is not installed here yet. Run: make run")
    os.execv(python, [str(python), *sys.argv])


if __name__ == "__main__":
    main()
