"""Every road works with plain forms and links."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from bench.site import Site
from tests.browser.steps import CHAT_URL, sign_up, without_javascript


@pytest.fixture
def plain(context: BrowserContext, site: Site) -> Iterator[Page]:
    opened, page = without_javascript(context, site.url)
    yield page
    opened.close()


def send(page: Page, text: str) -> None:
    page.get_by_label("Your message").fill(text)
    page.get_by_role("button", name="Send", exact=True).click()
    page.wait_for_url(CHAT_URL)


def wait_for_answer(page: Page, words: str) -> None:
    expect(page.locator(".message--assistant").last).to_contain_text(words, timeout=20_000)
    expect(page.locator(".message--assistant").last).to_have_attribute(
        "data-state", "done", timeout=20_000
    )


def test_a_question_is_answered_while_the_page_refreshes_itself(plain: Page) -> None:
    plain.goto("/")
    send(plain, "count 30 pace=12")
    wait_for_answer(plain, "30")


def test_a_suggestion_starts_a_chat(plain: Page) -> None:
    plain.goto("/")
    plain.get_by_role("button", name="Write a short poem").click()
    expect(plain.locator(".message--user")).to_contain_text("about the first day of autumn")


def test_a_question_is_edited_and_the_versions_switch(plain: Page) -> None:
    plain.goto("/")
    send(plain, "echo first")
    wait_for_answer(plain, "first")
    plain.locator(".edit summary").click()
    plain.get_by_label("Your question").fill("echo second")
    plain.locator(".edit").get_by_role("button", name="Send").click()
    wait_for_answer(plain, "second")
    plain.locator(".message--user").get_by_role("button", name="Previous version").click()
    wait_for_answer(plain, "first")


def test_how_an_answer_was_made_is_a_page(plain: Page) -> None:
    plain.goto("/")
    send(plain, "echo first")
    wait_for_answer(plain, "first")
    plain.get_by_role("link", name="About this answer").click()
    expect(plain.get_by_text("./manage.py replay")).to_be_visible()
    plain.get_by_role("link", name="Back to the chat").click()
    wait_for_answer(plain, "first")


def test_an_answer_is_stopped(plain: Page) -> None:
    plain.goto("/")
    send(plain, "count 900 pace=10")
    plain.get_by_role("button", name="Stop", exact=True).click()
    expect(plain.locator(".message--assistant")).to_contain_text("Stopped", timeout=10_000)


def test_a_chat_is_renamed_and_deleted(plain: Page) -> None:
    plain.goto("/")
    send(plain, "echo hello")
    wait_for_answer(plain, "hello")
    plain.goto("/chats/")
    plain.get_by_text("Change", exact=True).click()
    plain.get_by_label("Title").fill("By hand")
    plain.get_by_role("button", name="Rename").click()
    plain.goto("/chats/")
    expect(plain.get_by_role("link", name="By hand")).to_be_visible()
    plain.get_by_text("Change", exact=True).click()
    plain.get_by_role("button", name="Delete").click()
    plain.goto("/chats/")
    expect(plain.get_by_role("link", name="By hand")).to_have_count(0)


def test_signing_up_keeps_the_chats_of_the_guest(plain: Page) -> None:
    plain.goto("/")
    send(plain, "echo keep me")
    wait_for_answer(plain, "keep me")
    address = plain.url.partition("#")[0]
    sign_up(plain, "keeper")
    plain.goto(address)
    expect(plain.locator(".message--assistant")).to_contain_text("keep me")
