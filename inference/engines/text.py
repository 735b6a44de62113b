"""From token ids to text people can be shown: whole characters, no stop strings."""

import codecs
from collections.abc import Callable, Sequence


class TextAssembler:
    """Turns the bytes of tokens into text, a pure function of the tokens fed so far.

    Holds back bytes that do not make a whole character yet, and text that may turn out to
    be the beginning of a stop string. A run that continues feeds the same tokens again
    and is then in the same state, whatever was held back when it was interrupted.
    """

    def __init__(
        self, piece: Callable[[int], bytes] = lambda token: b"", stop: Sequence[str] = ()
    ) -> None:
        self._piece = piece
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self._half = ""  # the first half of a surrogate pair; the other may come next
        self.stopped = False

    def feed(self, token_id: int) -> str:
        """The new text this token completes; "" while held back. After a stop string: always ""."""
        return self.add(self._decoder.decode(self._piece(token_id)))

    def add(self, text: str) -> str:
        """The same for text that comes as whole characters already, or as halves of them."""
        text, self._half = self._half + text, ""
        if text and "\ud800" <= text[-1] <= "\udbff":
            text, self._half = text[:-1], text[-1]
        return "" if self.stopped else self._release(storable(text))

    def flush(self) -> str:
        """What was still held back, now that nothing more comes."""
        if self.stopped:
            return ""
        text = self._release(storable(self._half) + self._decoder.decode(b"", final=True))
        text, self._held = text + self._held, ""
        return "" if self.stopped else text

    def _release(self, text: str) -> str:
        text = self._held + text
        cut = min((at for at in map(text.find, self._stop) if at >= 0), default=-1)
        if cut >= 0:
            self.stopped, self._held = True, ""
            return text[:cut]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def estimated_tokens(text: str) -> int:
    """About how many tokens a text has, where nobody tells: one for every three bytes."""
    return -(-len(text.encode()) // 3)


def storable(text: str) -> str:
    """Without what a database cannot store: NUL, and halves of surrogate pairs.

    No answer means anything by them. Two halves that belong together become their character.
    """
    text = text.replace("\x00", "\N{REPLACEMENT CHARACTER}")
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
