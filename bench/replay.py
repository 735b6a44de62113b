"""Answers made on a real site among others, each made again alone.

python -m bench.replay [answers]. Six guests send at once, a worker is killed now and then, and
titles are written in between; then `manage.py replay` makes all of it again. "identical" means
token for token.
"""

import asyncio
import contextlib
import os
import random
import re
import signal
import sys
from collections.abc import Iterator
from typing import Any

from bench.prompts import Author
from bench.record import record
from bench.site import Person, Site, site, watch

GUESTS = 6
KILLS = 3
OUTCOME = re.compile(r"(\d+) identical, (\d+) differs, (\d+) cannot be replayed\.")


async def made(running: Site, answers: int) -> None:
    """Every guest asks, waits for the answer and asks again."""
    numbers = iter(range(answers))
    kills = set(random.Random(1).sample(range(answers // 4, answers), min(KILLS, answers)))
    people = [await Person(running).arrive() for _ in range(GUESTS)]
    await asyncio.gather(*(_guest(running, person, numbers, kills) for person in people))


async def _guest(running: Site, person: Person, numbers: Iterator[int], kills: set[int]) -> None:
    for number in numbers:
        author = Author(number, lambda turns: sum(len(turn.content) // 4 for turn in turns))
        if number in kills:
            with contextlib.suppress(ProcessLookupError, IndexError):
                os.kill(running.pid_of("worker"), signal.SIGKILL)
        async with person.socket() as socket:
            async for _ in watch(socket, await person.ask(author.chat()[-1].content)):
                pass


def replayed(running: Site, answers: int) -> dict[str, Any]:
    told = running.manage("replay", "--last", str(answers))
    found = OUTCOME.search(told.stdout)
    assert found, told.stdout + told.stderr
    names = ("identical", "differing", "not replayable")
    return dict(zip(names, map(int, found.groups()), strict=True))


def main() -> None:
    answers = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    with site("smollm2-135m-instruct", MAX_ANSWER_TOKENS="96") as running:
        asyncio.run(made(running, answers))
        figures = replayed(running, answers)
    record("replay", figures, f"{answers} answers of {GUESTS} guests at once, {KILLS} worker kills")


if __name__ == "__main__":
    main()
