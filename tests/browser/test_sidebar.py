"""The list of chats: menus, undo, and chats that are deleted elsewhere."""

import re

from playwright.sync_api import BrowserContext, Page, expect

from tests.browser.conftest import Visit
from tests.browser.steps import (
    CHAT_URL,
    open_chat_menu,
    sign_up,
    start_chat,
    wait_for_end,
    wait_for_title,
)

HOME = re.compile(r"//[^/]+/$")  # and no chat of it


def make_chat(page: Page, text: str) -> str:
    start_chat(page, text)
    wait_for_end(page)
    wait_for_title(page)
    return page.url


def delete_chat(page: Page, title: str) -> None:
    open_chat_menu(page, title)
    page.get_by_role("button", name="Delete").click()


def test_an_open_menu_stays_open_while_the_list_changes(
    page: Page, context: BrowserContext
) -> None:
    make_chat(page, "echo the first")
    other = context.new_page()
    open_chat_menu(page, "echo the first")
    menu = page.locator(".sidebar__chat", has_text="echo the first").locator(".menu__panel")
    expect(menu).to_be_visible()
    make_chat(other, "echo the second")
    page.wait_for_timeout(500)
    expect(menu).to_be_visible()
    page.keyboard.press("Escape")
    expect(menu).to_be_hidden()
    expect(page.locator(".sidebar__chat", has_text="echo the second")).to_have_count(1)


def test_the_list_keeps_its_nodes_when_nothing_has_changed(page: Page) -> None:
    make_chat(page, "echo the first")
    page.reload()
    page.evaluate("window.kept = document.querySelector('.sidebar__link')")
    page.get_by_label("Your message").fill("echo again")
    page.get_by_label("Your message").press("Enter")
    expect(page.locator(".message--user")).to_have_count(2)
    wait_for_end(page)
    page.wait_for_timeout(500)
    assert page.evaluate("window.kept.isConnected")


def test_undo_after_deleting_the_open_chat_goes_back_to_it(page: Page) -> None:
    chat = make_chat(page, "echo come back")
    delete_chat(page, "echo come back")
    page.wait_for_url(HOME)
    page.get_by_role("button", name="Undo").click()
    page.wait_for_url(chat)
    expect(page.locator(".message--user")).to_have_count(1)


def test_an_undo_that_fails_says_so_and_can_be_tried_again(visit: Visit) -> None:
    page = visit.page
    chat = make_chat(page, "echo come back")
    delete_chat(page, "echo come back")
    page.wait_for_url(HOME)
    page.route("**/deletion/", lambda route: route.abort())
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".toast")).to_contain_text("still deleted. The server cannot be reached.")
    page.unroute("**/deletion/")
    page.get_by_role("button", name="Undo").click()
    page.wait_for_url(chat)
    visit.forgive("ERR_FAILED")


def test_a_chat_deleted_in_another_tab_is_left_with_a_word(
    visit: Visit, context: BrowserContext
) -> None:
    page = visit.page
    chat = make_chat(page, "echo soon gone")
    other = context.new_page()
    other.goto(chat)
    delete_chat(other, "echo soon gone")
    page.wait_for_url(HOME)
    expect(page.locator(".toast")).to_have_text("This chat was deleted elsewhere.")
    visit.forgive("404")


def test_logging_out_is_one_click_away(page: Page) -> None:
    sign_up(page, "leaver")
    page.wait_for_url(HOME)
    page.locator(".sidebar").get_by_role("button", name="Log out").click()
    account = page.get_by_role("navigation", name="Account")
    expect(account.get_by_role("link", name="Log in")).to_be_visible()
    assert not CHAT_URL.search(page.url)
