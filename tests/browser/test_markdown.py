"""Markdown on the page: the same while it streams and after a reload, and harmless."""

from playwright.sync_api import BrowserContext, Page, expect

from tests.browser.steps import answer, start_chat, wait_for_end, wait_for_title

SAMPLE = (
    "# Title\n\nSome **bold** and `code` 😀 中文.\n\n- one\n- two\n  - deep\n\n"
    "| a | b |\n|---|--:|\n| 1 | 2 |\n\n"
    "```python\ndef f(x):\n    return '<b>' + x\n```\n\n"
    "[a link](https://example.com/x) and ![a picture](https://example.com/i.png)\n\nThe end."
)
HOSTILE = (
    "<img src=x onerror=alert(1)><script>alert(1)</script> [x](javascript:alert(1))"
    " ![](https://evil.example/pixel.png)\n\n```html\n<script>alert(2)</script>\n```\n\nend"
)


def body_html(page: Page) -> str:
    return str(answer(page).locator(".message__body").inner_html())


def test_markdown_is_rendered_and_code_is_coloured(page: Page) -> None:
    start_chat(page, f"echo {SAMPLE}")
    wait_for_end(page)
    body = answer(page).locator(".message__body")
    expect(body.locator("h1")).to_have_text("Title")
    expect(body.locator("td").last).to_have_text("2")
    expect(body.locator(".hljs-keyword").first).to_be_visible()
    expect(body.locator("img")).to_have_count(0)


def test_code_is_copied(page: Page, context: BrowserContext) -> None:
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    start_chat(page, "echo ```python\nx = 1\n```")
    wait_for_end(page)
    answer(page).get_by_role("button", name="Copy", exact=True).click()
    expect(answer(page).get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == "x = 1\n"


def test_what_a_copy_button_tells_outlives_news_of_the_chat(page: Page) -> None:
    """Such as its title, which comes in the second after the first answer."""
    start_chat(page, "echo ```python\nx = 1\n```")
    wait_for_end(page)
    wait_for_title(page)
    told = page.evaluate(
        """async () => {
            const { sync } = await import("/static/js/transcript.js");
            const button = document.querySelector(".code__copy");
            button.click();
            while (button.textContent !== "Copied") await new Promise(requestAnimationFrame);
            await sync();
            return [button.isConnected, button.textContent];
        }"""
    )
    assert told == [True, "Copied"]
    expect(answer(page).get_by_role("button", name="Copy", exact=True)).to_be_visible()


def test_the_streamed_and_the_sent_html_are_equal_after_a_reload(page: Page) -> None:
    start_chat(page, f"echo {SAMPLE}")
    wait_for_end(page)
    expect(answer(page).locator(".hljs-keyword").first).to_be_visible()
    streamed = body_html(page)
    page.reload()
    expect(answer(page).locator(".hljs-keyword").first).to_be_visible()
    assert body_html(page) == streamed


def test_the_end_of_the_stream_changes_no_node_of_the_text(page: Page) -> None:
    start_chat(page, f"echo {SAMPLE} pace=150")
    expect(answer(page).locator("h1")).to_have_text("Title")
    page.evaluate("window.kept = document.querySelector('.markdown h1')")
    wait_for_end(page)
    assert page.evaluate("window.kept.isConnected")


def test_hostile_answers_do_nothing(page: Page) -> None:
    start_chat(page, f"echo {HOSTILE}")
    wait_for_end(page)
    body = answer(page).locator(".message__body")
    expect(body).to_contain_text("<script>alert(1)</script>")
    assert body.locator("img, script, [onerror]").count() == 0
    assert body.locator("a[href^='javascript']").count() == 0
