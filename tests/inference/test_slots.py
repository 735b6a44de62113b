"""Which slot a run gets, and what it finds there."""

from inference.engines.base import Request, Sampling, Turn
from inference.engines.mail import Mailbox
from inference.engines.runs import Run
from inference.engines.sampler import Sampler, Vocabulary
from inference.engines.slots import Slot, place
from inference.engines.text import TextAssembler

LONG = list(range(100, 200))


async def run(prompt: list[int], scope: str = "alice", shared: int = 0) -> Run:
    request = Request((Turn("user", ""),), scope=scope)
    text = TextAssembler(lambda token: b"x")
    sampler = Sampler(Sampling(), Vocabulary(9, lambda token: b"x", lambda token: False))
    return Run(request, prompt, shared, sampler, Mailbox.of_running_loop(), text)


async def test_a_run_goes_where_its_beginning_is():
    slots = [Slot(0), Slot(1, LONG, "alice"), Slot(2)]
    found = place(await run([*LONG, 1, 2]), slots)
    assert found
    assert (found.slot.number, found.kept) == (1, 100)


async def test_the_last_token_is_always_evaluated():
    found = place(await run(LONG), [Slot(0, [*LONG, 5], "alice")])
    assert found
    assert found.kept == 99


async def test_another_scopes_words_are_not_reused_but_the_operators_are():
    slots = [Slot(0, LONG, "bob", shared=40)]
    found = place(await run([*LONG, 1], shared=40), slots)
    assert found
    assert found.kept == 40
    found = place(await run([*LONG, 1], shared=0), slots)
    assert found
    assert found.kept == 0


async def test_an_empty_scope_reuses_nothing_of_its_own():
    found = place(await run([*LONG, 1], scope=""), [Slot(0, LONG, "")])
    assert found
    assert found.kept == 0


async def test_a_long_beginning_is_copied_from_a_slot_at_work():
    at_work = Slot(0, LONG, "alice", run=await run(LONG))
    found = place(await run([*LONG, 1]), [at_work, Slot(1)])
    assert found
    assert (found.slot.number, found.source.number, found.kept) == (1, 0, 100)


async def test_a_short_beginning_is_not_worth_a_copy():
    at_work = Slot(0, LONG[:20], "alice", run=await run(LONG))
    found = place(await run([*LONG, 1]), [at_work, Slot(1)])
    assert found
    assert (found.source.number, found.kept) == (1, 0)


async def test_runs_lie_side_by_side_and_the_stalest_goes_first():
    busy = Slot(2, run=await run([1]))
    slots = [Slot(0, used_at=1), Slot(1, used_at=5), busy, Slot(3, used_at=4)]
    found = place(await run([1, 2]), slots)
    assert found
    assert found.slot.number == 3


async def test_a_run_waits_when_all_slots_are_taken():
    assert place(await run([1, 2]), [Slot(0, run=await run([1]))]) is None
