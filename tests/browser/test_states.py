"""The states between asking and having an answer, also when things break, as people see them."""

import os
import re
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, WebSocketRoute, expect

from bench.site import Site
from tests.browser import steps

pytestmark = pytest.mark.browser
STATUS = ".message__status"


@contextmanager
def site_with(folder: Path, **names: str) -> Iterator[Site]:
    made = Site(folder, "simulated", WORKER_SLOTS="1", DRAIN_SECONDS="0", **names)
    made.install()
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def narrow_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One answer at a time, and a model that takes its time to load."""
    with site_with(tmp_path_factory.mktemp("narrow"), SIMULATED_LOAD_SECONDS="3") as made:
        yield made


@contextmanager
def visit_to(browser: Browser, site: Site) -> Iterator[Page]:
    context = browser.new_context(base_url=site.url)
    context.set_default_timeout(20_000)
    yield context.new_page()
    context.close()


@pytest.fixture
def visitor(browser: Browser, narrow_site: Site) -> Iterator[Page]:
    with visit_to(browser, narrow_site) as page:
        yield page


def test_a_loading_model_says_how_far_it_is(browser: Browser, tmp_path: Path):
    """As long as a busy machine may need to show a page."""
    with site_with(tmp_path, SIMULATED_LOAD_SECONDS="15") as slow, visit_to(browser, slow) as page:
        steps.start_chat(page, "count 5")
        expect(page.locator(STATUS)).to_contain_text(re.compile(r"Loading the model, \d+ %"))
        steps.wait_for_end(page)
        assert steps.body_text(page) == "1 2 3 4 5"


def test_a_whole_answer_has_no_caret_and_nothing_to_stop_while_its_end_is_written(
    browser: Browser, tmp_path: Path
):
    slow_end = site_with(tmp_path, FAILPOINT="before_finish:sleep=12")
    with slow_end as slow, visit_to(browser, slow) as page:
        steps.start_chat(page, "count 5")
        expect(steps.answer(page)).to_have_attribute("data-state", "whole", timeout=15_000)
        expect(page.locator(".message__caret")).to_have_count(0)
        expect(page.locator(".message__dot:visible")).to_have_count(0)
        expect(page.locator("[data-stop]")).to_be_hidden()
        assert steps.body_text(page) == "1 2 3 4 5"
        page.reload()
        expect(steps.answer(page)).to_have_attribute("data-state", "whole")
        expect(page.locator(".message__caret")).to_have_count(0)
        expect(page.locator("[data-stop]")).to_be_hidden()
        os.kill(slow.pid_of("worker"), signal.SIGKILL)  # another one writes the end
        steps.ask(page, "count 7")  # waits for the end of the other
        expect(page.locator("#pending, #unsent")).to_contain_text(["count 7"])
        expect(page.locator("#transcript")).not_to_contain_text("count 7")
        expect(page.locator(STATUS)).not_to_contain_text("Going on")
        expect(page.locator("#transcript")).to_contain_text("1 2 3 4 5 6 7", timeout=30_000)


def test_a_waiting_question_shows_its_place_and_then_its_answer(
    browser: Browser, narrow_site: Site, visitor: Page
):
    other = browser.new_context(base_url=narrow_site.url).new_page()
    steps.start_chat(visitor, "count 30 pace=20")  # four seconds: how long an answer takes here
    steps.wait_for_end(visitor)
    steps.start_chat(other, "count 250 pace=60")
    steps.wait_for_words(other, "1 2 3")
    steps.start_chat(visitor, "count 7")
    expect(visitor.locator(STATUS)).to_contain_text("Position 1 in the queue, about")
    first = visitor.locator(STATUS).text_content()
    expect(visitor.locator("#announcer")).to_contain_text("Position 1 in the queue, about")
    visitor.locator(".message__dot").last.evaluate("dot => dot.dataset.seen = 'yes'")
    # The one in front takes longer than that: the estimate grows, and the dot breathes on.
    expect(visitor.locator(STATUS)).not_to_have_text(str(first), timeout=15_000)
    expect(visitor.locator(STATUS)).to_contain_text("Position 1 in the queue, about")
    expect(visitor.locator(".message__dot").last).to_have_attribute("data-seen", "yes")
    other.keyboard.press("Escape")
    steps.wait_for_end(visitor)
    assert steps.body_text(visitor) == "1 2 3 4 5 6 7"
    other.context.close()


def test_a_killed_worker_is_a_pause_and_the_same_sentence_goes_on(narrow_site: Site, visitor: Page):
    steps.start_chat(visitor, "count 120 pace=60")
    steps.wait_for_words(visitor, "20 21 22")
    os.kill(narrow_site.pid_of("worker"), signal.SIGKILL)
    expect(visitor.locator(STATUS)).to_contain_text("Going on where it stopped…")
    steps.wait_for_end(visitor)
    assert steps.body_text(visitor) == " ".join(str(n) for n in range(1, 121))


def test_a_question_that_crashes_the_model_fails_with_its_text_and_can_be_tried_again(
    visitor: Page,
):
    steps.start_chat(visitor, "count 60 crash=1")
    expect(steps.answer(visitor)).to_have_attribute("data-state", "failed", timeout=60_000)
    expect(steps.answer(visitor)).to_contain_text("three times")
    expect(steps.answer(visitor).get_by_role("button", name="Try again")).to_be_visible()


def test_a_lost_connection_is_told_and_the_answer_is_whole_when_it_is_back(
    narrow_site: Site, visitor: Page
):
    steps.start_chat(visitor, "count 150 pace=50")
    steps.wait_for_words(visitor, "10 11 12")
    serving = narrow_site.pid_of("web")
    parent = int(Path(f"/proc/{serving}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(parent, signal.SIGSTOP)  # so that nobody starts it again
    os.kill(serving, signal.SIGKILL)
    expect(visitor.locator(".topbar__network")).to_have_text("Reconnecting…")
    os.kill(parent, signal.SIGCONT)
    steps.wait_for_end(visitor)
    assert steps.body_text(visitor) == " ".join(str(n) for n in range(1, 151))
    expect(visitor.locator(".topbar__network")).to_have_text("")


def test_a_long_conversation_says_what_was_left_out(visitor: Page):
    steps.start_chat(visitor, "echo pace=2000 " + "river " * 2500)
    steps.wait_for_end(visitor)
    steps.ask(visitor, "echo pace=2000 " + "lake " * 2500)
    expect(visitor.locator(".message--assistant")).to_have_count(2)
    steps.wait_for_end(visitor)
    expect(steps.answer(visitor)).to_contain_text("left out")


def test_a_message_longer_than_the_models_memory_says_how_much_of_it_was_left_out(visitor: Page):
    steps.start_chat(visitor, "echo pace=2000 " + "xyz." * 1500)
    steps.wait_for_end(visitor)
    expect(steps.answer(visitor)).to_contain_text(re.compile(r"The last \d+ characters"))


def test_a_line_on_which_nothing_comes_for_twenty_seconds_is_made_anew(visitor: Page):
    opened: list[object] = []
    visitor.on("websocket", lambda socket: opened.append(socket))
    visitor.clock.install()
    steps.start_chat(visitor, "count 3")
    steps.wait_for_end(visitor)
    visitor.clock.fast_forward(15_000)
    visitor.wait_for_timeout(500)
    assert len(opened) == 1
    with visitor.expect_event("websocket"):
        visitor.clock.fast_forward(20_000)


def test_a_page_says_that_it_waits_for_the_database_until_that_is_back(visitor: Page):
    """Only the socket is a stand-in: what it says is tested where it is said."""
    lines: list[WebSocketRoute] = []

    def relay(line: WebSocketRoute) -> None:
        line.connect_to_server()
        lines.append(line)

    visitor.route_web_socket(re.compile("/ws/"), relay)
    steps.start_chat(visitor, "count 3")
    steps.wait_for_end(visitor)
    network = visitor.get_by_role("status").filter(has_text="Waiting for the database…")
    lines[-1].send('{"type": "pong", "away": true}')
    expect(network).to_be_visible()
    lines[-1].send('{"type": "pong"}')
    expect(network).to_have_count(0)


@pytest.mark.parametrize("failures", [0, 3, 30])
def test_row_10_pages_that_lost_their_line_together_come_back_evenly_spread(
    visitor: Page, failures: int
):
    """The fullest tenth of the time has at most half as many again as the mean."""
    visitor.goto("/")
    pauses = visitor.evaluate(
        """async (failures) => {
            const { pauseAfter } = await import("/static/js/pause.js");
            return Array.from({ length: 5000 }, () => pauseAfter(failures));
        }""",
        failures,
    )
    ceiling = min(30_000, 250 * 2**failures)
    tenths = Counter(int((pause - 100) / (ceiling - 100) * 10) for pause in pauses)
    assert set(tenths) == set(range(10))
    assert max(tenths.values()) <= 1.5 * 500
