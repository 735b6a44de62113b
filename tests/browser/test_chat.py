"""A visitor with a browser: asking, streaming, stopping, versions, two tabs."""

import re

from playwright.sync_api import APIResponse, BrowserContext, Page, Route, expect

from tests.browser.conftest import Visit
from tests.browser.steps import (
    answer,
    ask,
    body_text,
    open_chat_menu,
    question,
    rename,
    start_chat,
    wait_for_end,
    wait_for_title,
    wait_for_words,
)


def test_a_guest_sends_and_sees_the_answer_stream(page: Page) -> None:
    start_chat(page, "count 200 pace=40")
    wait_for_words(page, "5")
    expect(answer(page)).to_have_attribute("data-state", "running")
    wait_for_end(page)
    assert body_text(page).split()[-1].strip(".") == "200"


def test_a_reload_in_mid_stream_shows_the_same_text_going_on(page: Page) -> None:
    start_chat(page, "count 200 pace=40")
    wait_for_words(page, "20")
    before = body_text(page)
    page.reload()
    after = body_text(page)
    assert after.startswith(before[:20])
    wait_for_end(page)
    assert [word.strip(",.") for word in body_text(page).split()] == [
        str(number) for number in range(1, 201)
    ]


def test_a_second_tab_shows_the_same_live(page: Page, context: BrowserContext) -> None:
    start_chat(page, "count 120 pace=40")
    other = context.new_page()
    other.goto(page.url)
    wait_for_words(other, "30")
    wait_for_end(page)
    wait_for_end(other)
    assert body_text(other) == body_text(page)


def test_eight_tabs_stream_at_once_from_one_worker(context: BrowserContext) -> None:
    tabs = [context.new_page() for _ in range(8)]
    for tab in tabs:
        start_chat(tab, "count 400 pace=20")
    for tab in tabs:
        wait_for_words(tab, "5")
    for tab in tabs:
        expect(answer(tab)).to_have_attribute("data-state", "running")
    before = [len(body_text(tab)) for tab in tabs]
    tabs[0].wait_for_timeout(1000)
    assert all(len(body_text(tab)) > length for tab, length in zip(tabs, before, strict=True))
    for tab in tabs:
        tab.get_by_role("button", name="Stop").click()
        wait_for_end(tab)


def test_a_second_tab_gets_what_is_asked_in_the_first(page: Page, context: BrowserContext) -> None:
    start_chat(page, "echo one")
    wait_for_end(page)
    other = context.new_page()
    other.goto(page.url)
    ask(page, "echo second question")
    expect(question(other)).to_contain_text("second question")
    wait_for_end(other)
    assert "second question" in body_text(other)


def test_stop_keeps_the_text(page: Page) -> None:
    start_chat(page, "count 500 pace=30")
    wait_for_words(page, "9")
    page.get_by_role("button", name="Stop the answer").click()
    expect(answer(page)).to_have_attribute("data-state", "stopped")
    expect(answer(page)).to_contain_text("Stopped")
    expect(page.get_by_label("Your message")).to_be_focused()
    kept = body_text(page)
    assert kept.startswith("1")
    page.reload()
    assert body_text(page) == kept


def test_escape_stops_and_continue_goes_on(page: Page) -> None:
    start_chat(page, "count 60 pace=30")
    wait_for_words(page, "9")
    page.keyboard.press("Escape")
    expect(answer(page)).to_have_attribute("data-state", "stopped")
    answer(page).get_by_role("button", name="Continue").click()
    wait_for_words(page, "60")
    wait_for_end(page)


LEAST_QUESTIONS = """() => {
  const count = () => document.querySelectorAll(".message--user").length;
  window.least = count();
  new MutationObserver(() => (window.least = Math.min(window.least, count())))
    .observe(document.getElementById("transcript"), { childList: true });
}"""


def test_rows_asked_for_before_a_question_was_sent_do_not_take_it_away(
    page: Page, context: BrowserContext
) -> None:
    held: list[tuple[Route, APIResponse]] = []

    def hold_the_first(route: Route) -> None:
        route.continue_() if held else held.append((route, route.fetch()))

    start_chat(page, "echo the first")
    wait_for_end(page)
    wait_for_title(page)
    page.route("**/transcript/", hold_the_first)
    other = context.new_page()
    other.goto(page.url)
    rename(other, "Named elsewhere")  # that is told, so the page asks for its rows
    page.wait_for_timeout(3000)
    assert held, "the page has asked for nothing"
    ask(page, "echo the second")
    expect(page.locator(".message--user[data-message]")).to_have_count(2)
    page.evaluate(LEAST_QUESTIONS)
    for route, response in held:
        route.fulfill(response=response)
    page.wait_for_timeout(1000)
    assert page.evaluate("window.least") == 2
    expect(page.locator(".message--user[data-message]")).to_have_count(2)
    expect(page.locator("#chat-title")).to_have_text("Named elsewhere")  # what they had to tell


def test_an_edit_makes_a_version_and_the_arrows_switch(page: Page) -> None:
    start_chat(page, "echo first wording")
    wait_for_end(page)
    question(page).hover()
    question(page).get_by_role("button", name="Edit the question").click()
    page.get_by_label("Your question").fill("echo second wording")
    page.get_by_label("Your question").press("Control+Enter")
    wait_for_words(page, "second wording")
    wait_for_end(page)
    expect(question(page).locator(".versions__number")).to_have_text("2/2")
    question(page).get_by_role("button", name="Previous version").click()
    wait_for_words(page, "first wording")
    expect(question(page).locator(".versions__number")).to_have_text("1/2")


def test_answer_again_makes_a_version_of_the_answer(page: Page) -> None:
    start_chat(page, "tell me anything pace=200")
    wait_for_end(page)
    answer(page).get_by_role("button", name="Answer again").click()
    expect(answer(page).locator(".versions__number")).to_have_text("2/2")
    expect(answer(page)).to_be_focused()
    answer(page).get_by_role("button", name="Previous version").click()
    expect(answer(page).locator(".versions__number")).to_have_text("1/2")
    expect(answer(page).get_by_role("button", name="Next version")).to_be_enabled()
    focused = page.locator(".message--assistant:focus, .message--assistant :focus")
    expect(focused).to_have_count(1)


def test_a_message_sent_while_busy_waits_and_is_then_asked(page: Page) -> None:
    start_chat(page, "count 60 pace=30")
    wait_for_words(page, "5")
    ask(page, "echo I waited")
    expect(page.locator(".pending")).to_contain_text("I waited")
    expect(question(page)).to_contain_text("I waited", timeout=20_000)
    wait_for_words(page, "I waited")
    expect(page.locator(".pending")).to_have_count(0)


def test_a_waiting_message_can_be_taken_back_to_edit(page: Page) -> None:
    start_chat(page, "count 200 pace=30")
    wait_for_words(page, "5")
    ask(page, "echo to be changed")
    page.get_by_role("button", name="Edit the waiting message").click()
    expect(page.get_by_label("Your message")).to_have_value("echo to be changed")
    expect(page.locator(".pending")).to_have_count(0)


def test_rename_in_place_and_delete_with_undo(page: Page) -> None:
    start_chat(page, "echo hello there")
    wait_for_end(page)
    wait_for_title(page)
    rename(page, "Renamed by hand")
    expect(page.locator("#chat-title")).to_have_text("Renamed by hand")
    open_chat_menu(page, "Renamed by hand")
    page.get_by_role("button", name="Delete").click()
    page.wait_for_url(re.compile(r"//[^/]+/$"))
    expect(page.locator(".sidebar__chat", has_text="Renamed by hand")).to_have_count(0)
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".sidebar__chat", has_text="Renamed by hand")).to_have_count(1)


def test_the_draft_of_a_chat_comes_back_after_a_reload(page: Page) -> None:
    start_chat(page, "echo hello")
    wait_for_end(page)
    page.get_by_label("Your message").fill("half a thought")
    page.reload()
    expect(page.get_by_label("Your message")).to_have_value("half a thought")


def test_a_blank_message_is_not_sent(page: Page) -> None:
    page.goto("/")
    ask(page, "   \n ")
    page.wait_for_timeout(300)
    assert page.url.endswith("/")


def test_enter_while_an_input_method_composes_does_not_send(page: Page) -> None:
    page.goto("/")
    field = page.get_by_label("Your message")
    field.fill("にほん")
    field.dispatch_event("keydown", {"key": "Enter", "isComposing": True})
    page.wait_for_timeout(300)
    assert page.url.endswith("/")


def test_suggestions_are_filtered_as_one_types(page: Page) -> None:
    page.goto("/")
    expect(page.locator(".suggestion:visible")).to_have_count(4)
    page.get_by_label("Your message").fill("recur")
    expect(page.locator(".suggestion:visible")).to_have_count(1)
    page.get_by_role("button", name="Explain recursion").click()
    expect(question(page)).to_contain_text("Explain recursion with one tiny example")


def test_a_message_sent_offline_goes_out_once_when_the_network_is_back(
    visit: Visit,
) -> None:
    page = visit.page
    start_chat(page, "echo hello")
    wait_for_end(page)
    page.route("**/messages/", lambda route: route.abort())
    ask(page, "echo after the tunnel")
    expect(page.get_by_role("alert")).to_contain_text("kept and sent again")
    page.unroute("**/messages/")
    wait_for_words(page, "after the tunnel")
    expect(page.locator(".message--user")).to_have_count(2)
    visit.forgive("ERR_FAILED")


def test_the_keyboard_help_opens_and_closes(page: Page) -> None:
    page.goto("/")
    page.keyboard.press("Control+/")
    expect(page.get_by_role("dialog")).to_be_visible()
    expect(page.get_by_role("button", name="Close")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()


def test_the_sidebar_is_a_drawer_on_a_phone(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto("/")
    expect(page.locator("#sidebar")).to_be_hidden()
    page.locator(".topbar [data-toggle-sidebar]").click()
    expect(page.locator("#sidebar")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#sidebar")).to_be_hidden()
