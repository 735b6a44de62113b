"""Editing a question in its place."""

import re

from playwright.sync_api import BrowserContext, Locator, Page, Route, expect

from tests.browser.steps import ask, question, start_chat, wait_for_end, wait_for_title


def open_edit(page: Page) -> Locator:
    """In a chat that has its title already, so that no sync is under way."""
    wait_for_end(page)
    wait_for_title(page)
    page.wait_for_timeout(300)
    first = page.locator(".message--user").first
    first.hover()
    first.get_by_role("button", name="Edit the question").click()
    return page.get_by_label("Your question").first


def test_the_form_is_there_at_once_and_escape_brings_the_question_back(page: Page) -> None:
    start_chat(page, "echo a question to edit")
    field = open_edit(page)
    expect(field).to_be_visible(timeout=500)
    expect(field).to_be_focused(timeout=500)
    expect(question(page).locator(".message__bubble")).to_be_hidden()
    page.keyboard.type(" and more")
    page.keyboard.press("Escape")
    expect(field).to_be_hidden()
    expect(question(page).locator(".message__bubble")).to_have_text("echo a question to edit")
    expect(question(page).get_by_role("button", name="Edit the question")).to_be_focused()
    question(page).get_by_role("button", name="Edit the question").press("Enter")
    expect(field).to_have_value("echo a question to edit")


def test_the_form_is_as_wide_as_the_column(page: Page) -> None:
    start_chat(page, "echo short")
    open_edit(page)
    form = page.locator(".edit__form").bounding_box()
    answer = page.locator(".message--assistant").bounding_box()
    assert form is not None
    assert answer is not None
    assert abs(form["width"] - answer["width"]) < 1


def test_what_is_being_edited_survives_what_happens_in_another_tab(
    page: Page, context: BrowserContext
) -> None:
    start_chat(page, "echo one")
    field = open_edit(page)
    page.keyboard.type(" changed")
    other = context.new_page()
    other.goto(page.url)
    ask(other, "echo two")
    expect(page.locator(".message--user")).to_have_count(2)
    wait_for_end(page)
    expect(field).to_be_visible()
    expect(field).to_be_focused()
    expect(field).to_have_value("echo one changed")


def test_the_new_answer_has_the_focus_after_an_edit(page: Page) -> None:
    start_chat(page, "echo one")
    field = open_edit(page)
    field.fill("count 30 pace=30")
    field.press("Control+Enter")
    expect(page.locator(".message--assistant")).to_be_focused()
    wait_for_end(page)
    expect(page.locator(".message--assistant")).to_be_focused()


def test_an_edit_while_the_page_is_being_brought_up_to_date_shows_its_answer(
    page: Page, context: BrowserContext
) -> None:
    """The update under way was begun before the edit and cannot have its answer."""
    start_chat(page, "echo one")
    field = open_edit(page)
    field.fill("echo instead")
    held: list[Route] = []
    page.route(re.compile("transcript"), lambda route: held.append(route), times=1)
    other = context.new_page()
    other.goto(page.url)
    ask(other, "echo two")
    for _ in range(100):
        if held:
            break
        page.wait_for_timeout(50)
    response = held[0].fetch()
    field.press("Control+Enter")
    page.wait_for_timeout(500)
    held[0].fulfill(response=response)
    expect(page.locator(".message--assistant", has_text="instead")).to_be_focused()
    expect(page.locator(".message--assistant")).to_have_count(1)
