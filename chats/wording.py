"""The words of a title: tidied out of what a model wrote, or the first ones of the question."""

import re
import unicodedata

MAX_CHARACTERS = 60
MAX_WORDS = 10
# Small models talk about the title instead of giving it.
TALK = re.compile(
    r"^(sure|certainly|of course|okay|here('s| is| are)|i('m| am| can|'d)|as an ai|you (can|could)"
    r"|the title|a (short )?title|this (is|conversation))\b",
    re.IGNORECASE,
)
LABEL = re.compile(r"^\W*title\s*:", re.IGNORECASE)
DECORATION = re.compile(r"^[\s#>*_`\"'“”‘’«»\-–—:.]+|[\s*_`\"'“”‘’«».,:;]+$")


def tidy(text: str) -> str:
    """A title out of what the model wrote; empty when it wrote none."""
    lines = (_plain(line) for line in text.splitlines())
    line = next((line for line in lines if line), "")
    bare = DECORATION.sub("", LABEL.sub("", line))
    is_silly = TALK.match(bare) or len(bare.split()) > MAX_WORDS or not re.search(r"\w", bare)
    return "" if is_silly else _cut(bare[:1].upper() + bare[1:])


def shortened(question: str) -> str:
    """The first words of the question, for want of a better title."""
    return _cut(_plain(" ".join(question.split())[: MAX_CHARACTERS * 2])) or "New chat"


def _plain(line: str) -> str:
    # Without control and direction characters: a title stands in lists beside other people's text.
    kept = (c for c in line if unicodedata.category(c) not in {"Cc", "Cf", "Cs", "Co"})
    return " ".join("".join(kept).split())


def _cut(title: str) -> str:
    if len(title) <= MAX_CHARACTERS:
        return title
    head, _, _ = title[: MAX_CHARACTERS - 1].rpartition(" ")
    return f"{head or title[: MAX_CHARACTERS - 1]}…"
