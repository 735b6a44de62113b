"""How an answer was made, over the chat."""

from playwright.sync_api import Page, expect

from tests.browser.steps import start_chat, wait_for_end


def test_the_details_open_over_the_chat_and_give_the_focus_back(page: Page) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    start_chat(page, "echo one")
    wait_for_end(page)
    button = page.get_by_role("link", name="About this answer")
    run = page.locator(".message--assistant").get_attribute("data-generation")
    button.press("Enter")
    dialog = page.get_by_role("dialog", name="About this answer")
    expect(dialog.locator("dl")).to_contain_text("Simulated, release 1")
    dialog.get_by_role("button", name="Copy").click()
    expect(dialog.get_by_text("Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == f"./manage.py replay {run}"
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(button).to_be_focused()
    expect(page.locator("#details code")).to_have_count(0)
