"""What a visitor does, in words."""

import re
from typing import Any

from playwright.sync_api import BrowserContext, Locator, Page, expect

CHAT_URL = re.compile(r"/chats/[0-9a-f-]{36}/")


def ask(page: Page, text: str) -> None:
    page.get_by_label("Your message").fill(text)
    page.get_by_label("Your message").press("Enter")


def start_chat(page: Page, text: str) -> None:
    page.goto("/")
    ask(page, text)
    page.wait_for_url(CHAT_URL)


def answer(page: Page) -> Locator:
    return page.locator(".message--assistant").last


def question(page: Page) -> Locator:
    return page.locator(".message--user").last


def wait_for_end(page: Page) -> None:
    expect(answer(page)).to_have_attribute(
        "data-state", re.compile("done|stopped|failed|interrupted"), timeout=30_000
    )


def wait_for_words(page: Page, words: str) -> None:
    expect(answer(page).locator(".message__body")).to_contain_text(words, timeout=15_000)


def body_text(page: Page) -> str:
    return str(answer(page).locator(".message__body").inner_text())


def wait_for_title(page: Page) -> None:
    """Of a chat with one answer: version 1 is its start, 2 the answer's end."""
    expect(page.locator("#main")).to_have_attribute(
        "data-version", re.compile(r"^([3-9]|\d\d)$"), timeout=20_000
    )
    answering = page.locator(".sidebar__chat [aria-label='Answering']")
    expect(answering).to_have_count(0, timeout=20_000)


def sign_up(page: Page, username: str) -> None:
    page.goto("/accounts/signup/")
    page.get_by_label("Username").fill(username)
    page.get_by_label("Password", exact=True).fill("correct horse battery staple")
    page.get_by_label("Password again", exact=True).fill("correct horse battery staple")
    page.get_by_role("main").get_by_role("button", name="Sign up").click()


def open_chat_menu(page: Page, title: str) -> None:
    item = page.locator(".sidebar__chat", has_text=title)
    item.hover()
    item.locator("summary").click()


def rename(page: Page, title: str) -> None:
    """The only chat in the list."""
    page.locator(".sidebar__chat").hover()
    page.locator(".sidebar__chat summary").click()
    page.get_by_role("button", name="Rename").click()
    page.get_by_label("Title").fill(title)
    page.get_by_label("Title").press("Enter")


def scroll_top(page: Page) -> float:
    return float(page.evaluate("document.getElementById('scroller').scrollTop"))


def without_javascript(context: BrowserContext, url: str) -> tuple[BrowserContext, Page]:
    browser: Any = context.browser
    plain = browser.new_context(base_url=url, java_script_enabled=False)
    plain.set_default_timeout(15_000)
    return plain, plain.new_page()
