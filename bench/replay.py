"""Answers made on a real site among others, each made again alone.

python -m bench.replay [answers]. Six guests send at once, a worker is killed now and then, and
titles are written in between; then `manage.py replay` makes all of it again, titles too.
"identical" means token for token.
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
EVERYTHING = "1000000"
OUTCOME = re.compile(r"(\d+) identical, (\d+) differs, (\d+) cannot be replayed\.")


async def made(running: Site, answers: int) -> int:
    """Every guest asks, waits for the answer and asks again; how many kills there were."""
    numbers = iter(range(answers))
    due = set(random.Random(1).sample(range(answers // 4, answers), min(KILLS, answers)))
    people = [await Person(running).arrive() for _ in range(GUESTS)]
    killed = await asyncio.gather(*(_guest(running, person, numbers, due) for person in people))
    return sum(killed)


async def _guest(running: Site, person: Person, numbers: Iterator[int], due: set[int]) -> int:
    killed = 0
    for number in numbers:
        author = Author(number, lambda turns: sum(len(turn.content) // 4 for turn in turns))
        killed += number in due and _kill_the_worker(running)
        async with person.socket() as socket:
            async for _ in watch(socket, await person.ask(author.chat()[-1].content)):
                pass
    return killed


def _kill_the_worker(running: Site) -> bool:
    """False where there is none just now: the one before is dead and the next one not begun."""
    with contextlib.suppress(ProcessLookupError, IndexError):
        os.kill(running.pid_of("worker"), signal.SIGKILL)
        return True
    return False


def replayed(running: Site) -> dict[str, Any]:
    told = running.manage("replay", "--last", EVERYTHING)
    found = OUTCOME.search(told.stdout)
    assert found, told.stdout + told.stderr
    names = ("identical", "differing", "not replayable")
    return dict(zip(names, map(int, found.groups()), strict=True))


def main() -> None:
    answers = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    with site("smollm2-135m-instruct", MAX_ANSWER_TOKENS="96") as running:
        kills = asyncio.run(made(running, answers))
        figures = replayed(running) | {"worker kills": kills}
    note = f"{answers} answers of {GUESTS} guests at once, their first ones and all titles"
    record("replay", figures, note)


if __name__ == "__main__":
    main()
