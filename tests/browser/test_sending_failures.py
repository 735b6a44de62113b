"""Messages that cannot be sent at once: never lost, never sent twice."""

from collections.abc import Callable

import pytest
from playwright.sync_api import BrowserContext, Page, Route, expect

from tests.browser.conftest import Visit
from tests.browser.steps import (
    CHAT_URL,
    ask,
    question,
    start_chat,
    wait_for_end,
    wait_for_words,
)

UNSENT = "#unsent .pending"


def fail(route: Route) -> None:
    route.abort()


def answer_with(status: int, body: str = "") -> Callable[[Route], None]:
    kind = "application/json" if body else "text/html"
    return lambda route: route.fulfill(status=status, body=body, content_type=kind)


def box(page: Page) -> str:
    return page.get_by_label("Your message").input_value()


@pytest.fixture
def stuck(visit: Visit) -> Visit:
    """The home page with a first message that does not get through."""
    page = visit.page
    page.goto("/")
    page.route("**/chats/", fail)
    ask(page, "echo only once")
    expect(page.get_by_role("alert")).to_contain_text("kept and sent again")
    expect(page.locator(UNSENT)).to_have_text("echo only once")
    return visit


def expect_one_chat(page: Page) -> None:
    page.wait_for_url(CHAT_URL)
    wait_for_words(page, "only once")
    page.goto("/")
    page.wait_for_timeout(500)
    expect(page.locator(".sidebar__chat")).to_have_count(1)
    assert box(page) == ""


def test_a_first_message_is_sent_once_after_a_reload(stuck: Visit) -> None:
    stuck.page.unroute("**/chats/")
    stuck.page.reload()
    stuck.page.keyboard.press("Enter")
    expect_one_chat(stuck.page)
    stuck.forgive("ERR_FAILED")


def test_a_first_message_is_sent_once_after_a_reload_without_the_network(stuck: Visit) -> None:
    page = stuck.page
    page.reload()
    expect(page.locator(UNSENT)).to_have_text("echo only once")
    page.get_by_label("Your message").press("Enter")
    page.unroute("**/chats/")
    expect_one_chat(page)
    stuck.forgive("ERR_FAILED")


def test_a_first_message_sent_from_another_page_leaves_no_draft(visit: Visit) -> None:
    page = visit.page
    start_chat(page, "echo hello")
    wait_for_end(page)
    chat = page.url
    page.goto("/")
    page.route("**/chats/", fail)
    ask(page, "echo from elsewhere")
    expect(page.locator(UNSENT)).to_have_count(1)
    page.unroute("**/chats/")
    page.goto(chat)
    expect(page.locator(".sidebar__chat")).to_have_count(2)
    page.goto("/")
    assert box(page) == ""
    visit.forgive("ERR_FAILED")


def test_a_reload_while_the_first_message_is_on_its_way_sends_it_once(page: Page) -> None:
    held: list[Route] = []

    def hold_the_first(route: Route) -> None:
        route.continue_() if held else held.append(route)

    page.goto("/")
    # Not `unroute` before the reload: that lets the held one go, which is then a second way.
    page.route("**/chats/", hold_the_first)
    ask(page, "echo only once")
    page.wait_for_timeout(200)
    assert box(page) == "echo only once"
    assert len(held) == 1
    page.reload()
    expect_one_chat(page)


def test_a_message_refused_after_a_reload_comes_back(stuck: Visit) -> None:
    page = stuck.page
    page.goto("about:blank")  # the page that was left does not try once more meanwhile
    # The earlier route stays: without any, the browser lets a request through until the next is on.
    page.route("**/chats/", answer_with(400, '{"error": {"message": "Not this one."}}'))
    page.goto("/")
    expect(page.get_by_role("alert")).to_have_text("Not this one.")
    assert box(page) == "echo only once"
    expect(page.locator(UNSENT)).to_have_count(0)
    stuck.complaints.clear()


def test_what_is_written_meanwhile_stays_and_the_chat_is_one_click_away(stuck: Visit) -> None:
    page = stuck.page
    page.get_by_label("Your message").fill("something else")
    page.unroute("**/chats/")
    page.get_by_role("button", name="Open the chat").click()
    page.wait_for_url(CHAT_URL)
    page.goto("/")
    assert box(page) == "something else"
    stuck.forgive("ERR_FAILED")


def test_a_message_that_cannot_be_sent_while_an_answer_runs_is_shown(visit: Visit) -> None:
    page = visit.page
    start_chat(page, "count 300 pace=30")
    wait_for_words(page, "5")
    page.route("**/messages/", fail)
    ask(page, "echo I wait")
    expect(page.locator(UNSENT)).to_have_text("echo I wait")
    page.reload()
    expect(page.locator(UNSENT)).to_have_text("echo I wait")
    page.unroute("**/messages/")
    expect(page.locator("#pending .pending")).to_contain_text("echo I wait")
    expect(page.locator(UNSENT)).to_have_count(0)
    page.get_by_role("button", name="Send now").click()
    expect(question(page)).to_contain_text("echo I wait")
    expect(page.locator(".message--user")).to_have_count(2)
    visit.forgive("ERR_FAILED")


@pytest.mark.parametrize("is_home", [True, False])
def test_an_error_of_the_server_is_told_and_gives_the_text_back(
    visit: Visit, is_home: bool
) -> None:
    page = visit.page
    page.goto("/")
    if not is_home:
        start_chat(page, "echo hello")
        wait_for_end(page)
    pattern = "**/chats/" if is_home else "**/messages/"
    tries: list[str] = []

    def broken(route: Route) -> None:
        tries.append(route.request.post_data or "")
        route.fulfill(status=500, body="<h1>no</h1>", content_type="text/html")

    page.route(pattern, broken)
    ask(page, "echo please")
    words = "Something went wrong on the server. Please try again."
    expect(page.get_by_role("alert")).to_have_text(words)
    assert box(page) == "echo please"
    page.wait_for_timeout(1500)
    assert len(tries) == 1
    page.get_by_label("Your message").press("Enter")
    expect(page.get_by_role("alert")).to_have_text(words)
    page.wait_for_timeout(300)
    assert tries[1] == tries[0]  # the same client_id: the first may have been done after all
    visit.forgive("500")


def test_the_same_words_can_be_sent_twice_on_purpose(visit: Visit) -> None:
    page = visit.page
    start_chat(page, "echo hello")
    wait_for_end(page)
    page.route("**/messages/", answer_with(500))
    ask(page, "echo again")
    expect(page.get_by_role("alert")).to_contain_text("Something went wrong")
    page.unroute("**/messages/")
    for count in (2, 3):
        ask(page, "echo again")
        expect(page.locator(".message--user")).to_have_count(count)
        wait_for_end(page)
    page.reload()
    expect(page.locator(".message--user")).to_have_count(3)
    visit.forgive("500")


def test_a_server_that_is_away_for_a_moment_gets_the_message_again(visit: Visit) -> None:
    page = visit.page
    start_chat(page, "echo hello")
    wait_for_end(page)
    page.route("**/messages/", answer_with(502))
    ask(page, "echo once more")
    expect(page.get_by_role("alert")).to_contain_text("kept and sent again")
    page.unroute("**/messages/")
    wait_for_words(page, "once more")
    visit.forgive("502")


def test_an_error_goes_when_the_text_is_changed(visit: Visit) -> None:
    page = visit.page
    page.goto("/")
    ask(page, "x" * 33_000)
    expect(page.get_by_role("alert")).to_contain_text("33,000 characters")
    page.get_by_label("Your message").press("Backspace")
    expect(page.locator("#composer-error")).to_have_text("")
    visit.forgive("400")


def test_a_second_tab_does_not_send_what_the_first_sends(
    stuck: Visit, context: BrowserContext
) -> None:
    other = context.new_page()
    other.goto("/")  # not routed: it takes the message over
    other.wait_for_url(CHAT_URL)
    stuck.page.unroute("**/chats/")
    expect_one_chat(stuck.page)
    stuck.forgive("ERR_FAILED")


def test_a_full_queue_is_told_as_that_and_then_that_the_message_can_be_sent(visit: Visit) -> None:
    page = visit.page
    page.goto("/")
    words = "Too many people are waiting for this model. Please try again in 3 seconds."
    error = f'{{"error": {{"code": "too_busy", "message": "{words}", "retry_after": 3}}}}'
    page.route("**/chats/", answer_with(503, error))
    ask(page, "echo at last")
    said = page.get_by_role("alert")
    expect(said).to_contain_text("Too many people are waiting for this model. Please wait")
    expect(said).to_have_text("You can try again now.")
    assert box(page) == "echo at last"
    page.unroute("**/chats/")
    page.keyboard.press("Enter")
    wait_for_words(page, "at last")
    visit.forgive("503")
