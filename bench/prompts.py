"""Made-up conversations of a wanted length, each different from its first words on."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from inference.engines.base import Turn

Turns = tuple[Turn, ...]
Count = Callable[[Turns], int]

PEOPLE = [
    "the miller", "a young teacher", "my neighbour", "the captain", "our doctor", "a painter",
    "the gardener", "an engineer", "the baker", "her brother", "a student", "the judge",
]  # fmt: skip
DEEDS = [
    "repaired", "described", "sold", "painted", "forgot", "measured", "borrowed", "praised",
    "photographed", "discovered", "carried home", "wrote about",
]  # fmt: skip
THINGS = [
    "the old bridge", "a wooden boat", "two heavy books", "the garden wall", "a red bicycle",
    "the town's clock", "an unknown map", "the winter coats", "a basket of plums",
    "the new library", "three clay pots", "a letter from Lisbon",
]  # fmt: skip
TIMES = [
    "In spring", "Last Tuesday", "Before the storm", "At half past nine", "During the holidays",
    "One evening", "After the harvest", "On the first day", "Many years ago",
]  # fmt: skip
REASONS = [
    "the river had risen again", "nobody else had the time", "the weather was unusually mild",
    "it reminded everyone of the sea", "a visitor had asked for it", "the shop was closing",
    "the children wanted to see it", "there was plenty of light",
]  # fmt: skip
TOWNS = [
    "Bergen", "Porto", "Ghent", "Turku", "Krakow", "Bologna", "Galway", "Uppsala", "Basel",
]  # fmt: skip
QUESTIONS = [
    "What should happen next, and why?", "Can you explain this in simple words?",
    "Which part of it matters most?", "What would you have done instead?",
]  # fmt: skip


@dataclass(frozen=True)
class Author:
    """Writes what belongs to one seed; `count` says how many tokens turns make as a prompt."""

    seed: int
    count: Count

    def sentences(self, name: str) -> list[str]:
        """Endless enough, always the same for a name, as words."""
        draw = random.Random(f"{self.seed} {name}")
        words = []
        for _ in range(150):
            text = (
                f"{draw.choice(TIMES)} {draw.choice(PEOPLE)} from {draw.choice(TOWNS)} "
                f"{draw.choice(DEEDS)} {draw.choice(THINGS)}, because {draw.choice(REASONS)}."
            )
            words += text.split()
        return words

    def fit(self, tokens: int, turns: Callable[[int], Turns]) -> Turns:
        """The longest that `turns` makes of a number of words within so many tokens."""
        low, high = 1, 2000
        while low < high:
            middle = (low + high + 1) // 2
            if self.count(turns(middle)) <= tokens:
                low = middle
            else:
                high = middle - 1
        return turns(low)

    def system(self) -> Turn:
        """Other words for everybody, so that not even the template's beginning is shared."""
        return Turn("system", f"{self.seed} is the number of the person you help.")

    def chat(self) -> Turns:
        """A question, an answer and a further question: 150 to 250 tokens."""
        question, answer, further = (self.sentences(name) for name in ("1", "2", "3"))
        draw = random.Random(self.seed)
        asks = draw.choice(QUESTIONS)
        return self.fit(
            draw.randint(160, 250),
            lambda words: (
                self.system(),
                Turn("user", " ".join([*question[: words // 4], asks])),
                Turn("assistant", " ".join(answer[: words // 2])),
                Turn("user", " ".join([*further[: words // 4], asks])),
            ),
        )

    def short(self) -> Turns:
        """One question: about 30 tokens."""
        return (Turn("system", f"{self.seed}: be brief."), Turn("user", "Tell me a story."))

    def quoting(self) -> Turns:
        """Asks to repeat a text of about 150 tokens, after an example of how it is done."""
        example = " ".join(self.sentences("example")[:40])
        text = self.sentences("text")
        ask = "Repeat this text word for word, twice:"
        before = (
            self.system(),
            Turn("user", f"{ask}\n\n{example}"),
            Turn("assistant", f"{example}\n\n{example}"),
        )
        return self.fit(
            self.count((*before, Turn("user", ask))) + 152,
            lambda words: (*before, Turn("user", f"{ask}\n\n{' '.join(text[:words])}")),
        )

    def long(self, tokens: int) -> Turns:
        text = self.sentences("long")
        return self.fit(tokens, lambda words: (self.system(), Turn("user", " ".join(text[:words]))))

    def conversation(self, seen: int, tokens: int) -> tuple[Turns, Turns]:
        """Five questions with answers of together `seen` tokens; the same and a sixth question."""
        parts = [self.sentences(f"part {number}") for number in range(11)]

        def exchanges(words: int) -> Turns:
            texts = [" ".join(part[: words // 10 + (i < words % 10)]) for i, part in
                     enumerate(parts[:10])]  # fmt: skip
            roles = ("user", "assistant")
            return (self.system(), *(Turn(roles[i % 2], text) for i, text in enumerate(texts)))

        before = self.fit(seen, exchanges)
        return before, self.fit(
            tokens, lambda words: (*before, Turn("user", " ".join(parts[10][:words])))
        )
