"""Which messages an answer is given to go by; how many tokens of them fit is the worker's part."""

from dataclasses import dataclass

from chats import tree
from chats.models import Message
from inference.models import Release

MAX_MESSAGES = 200
CHARACTERS_PER_TOKEN = 6  # above what any text needs, so that the budget never cuts too early


@dataclass(frozen=True, slots=True)
class Window:
    """The newest messages, oldest first, and how many above them were not even considered."""

    messages: list[dict[str, str]]
    left_out_before: int


def window(question: Message, release: Release) -> Window:
    """The end of the conversation up to `question`, in a cost that its length does not change."""
    budget = release.window * CHARACTERS_PER_TOKEN - len(question.text)
    kept = _newest(tree.shape(question.parent_id, MAX_MESSAGES - 1), budget)
    texts = dict(Message.objects.filter(pk__in=[m.pk for m in kept]).values_list("pk", "text"))
    turns = [{"role": m.role, "content": texts[m.pk]} for m in kept if texts[m.pk]]
    asked = {"role": question.role, "content": question.text}
    return Window([*turns, asked], (kept[0] if kept else question).depth)


def _newest(line: list[Message], budget: int) -> list[Message]:
    start = len(line)
    for index in range(len(line) - 1, -1, -1):
        budget -= line[index].characters  # type: ignore[attr-defined]  # by tree.shape
        if budget < 0:
            break
        start = index
    if start < len(line) and line[start].role == Message.Role.ASSISTANT:
        start += 1  # an answer without its question helps nobody
    return line[start:]
