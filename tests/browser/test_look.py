"""What belongs together is close, edges are seen, and what a finger presses is big enough."""

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, FloatRect, Locator, Page, expect

from bench.site import Site
from tests.browser.steps import CHAT_URL, answer, ask, question, start_chat, wait_for_end

CODE = "echo ```python\nx = " + " + ".join(["number"] * 40) + "\n```"
CONTRAST = """(element) => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d");
  const channel = (c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const luminance = (colour) => {
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((c) => channel(c / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const style = getComputedStyle(element);
  const line = luminance(style.borderTopColor);
  const page = getComputedStyle(document.documentElement);
  const grounds = [style.backgroundColor, page.backgroundColor].map(luminance);
  return Math.min(...grounds.map((ground) =>
    (Math.max(line, ground) + 0.05) / (Math.min(line, ground) + 0.05)));
}"""
REACH = """(element) => {
  element.scrollIntoView({ block: "center" });
  const { left, right, top, bottom } = element.getBoundingClientRect();
  const [x, y] = [(left + right) / 2, (top + bottom) / 2];
  const isHit = (dx, dy) => element.contains(document.elementFromPoint(x + dx, y + dy));
  return isHit(-21, 0) && isHit(21, 0) && isHit(0, -21) && isHit(0, 21);
}"""


def place(element: Locator) -> FloatRect:
    """Where it comes to rest: messages move in, and the page scrolls along."""
    before, box = None, element.bounding_box()
    while box != before:
        element.page.wait_for_timeout(100)
        before, box = box, element.bounding_box()
    assert box is not None
    return box


def test_a_question_stands_closer_to_its_answer_than_to_the_one_before(page: Page) -> None:
    start_chat(page, "echo one")
    wait_for_end(page)
    ask(page, "echo two")
    expect(page.locator(".message--user")).to_have_count(2)
    wait_for_end(page)
    page.mouse.move(5, 5)
    first = place(page.locator(".message--assistant .message__body").first)
    bubble = place(question(page).locator(".message__bubble"))
    second = place(answer(page).locator(".message__body"))
    inner = second["y"] - bubble["y"] - bubble["height"]
    outer = bubble["y"] - first["y"] - first["height"]
    assert outer > 1.5 * inner
    question(page).hover()
    assert place(answer(page).locator(".message__body")) == second


def test_the_buttons_of_a_question_end_where_its_bubble_ends(page: Page) -> None:
    start_chat(page, "echo one")
    wait_for_end(page)
    bubble = place(question(page).locator(".message__bubble"))
    icon = place(question(page).locator("[data-edit] .icon"))
    assert abs(bubble["x"] + bubble["width"] - icon["x"] - icon["width"]) < 2


def test_suggestions_are_as_high_as_their_words(page: Page) -> None:
    page.set_viewport_size({"width": 820, "height": 800})
    page.goto("/")
    for card in page.locator(".suggestion:visible").all():
        title, rest = place(card.locator("b")), place(card.locator("span"))
        assert rest["y"] - title["y"] < 25  # one line


def test_a_long_line_of_code_shows_that_it_goes_on(page: Page) -> None:
    start_chat(page, CODE)
    wait_for_end(page)
    code = page.locator(".code pre")
    assert code.evaluate("(pre) => pre.scrollWidth > pre.clientWidth")
    ground = code.evaluate("(pre) => getComputedStyle(pre).backgroundAttachment")
    assert "local" in ground
    assert "scroll" in ground


@pytest.fixture(params=["light", "dark"])
def themed(request: pytest.FixtureRequest, browser: Browser, site: Site) -> Iterator[Page]:
    context = browser.new_context(base_url=site.url, color_scheme=request.param)
    yield context.new_page()
    context.close()


def test_the_borders_of_inputs_are_seen(themed: Page) -> None:
    themed.goto("/")
    themed.evaluate("document.activeElement.blur()")
    themed.wait_for_timeout(300)
    assert themed.locator(".composer__box").evaluate(CONTRAST) >= 3
    themed.goto("/accounts/login/")
    assert themed.get_by_label("Password", exact=True).evaluate(CONTRAST) >= 3


@pytest.fixture
def phone(browser: Browser, site: Site) -> Iterator[Page]:
    context = browser.new_context(
        base_url=site.url, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True
    )
    context.set_default_timeout(15_000)
    yield context.new_page()
    context.close()


def too_small(page: Page, *selectors: str) -> list[Any]:
    wanted = [one for selector in selectors for one in page.locator(selector).all()]
    assert len(wanted) >= len(selectors)
    return [one.get_attribute("aria-label") or one for one in wanted if not one.evaluate(REACH)]


def test_a_finger_hits_every_button(phone: Page) -> None:
    phone.goto("/")
    phone.get_by_label("Your message").fill(f"{CODE}\n\nshort")
    phone.get_by_role("button", name="Send").tap()
    phone.wait_for_url(CHAT_URL)
    wait_for_end(phone)
    answer(phone).get_by_role("button", name="Answer again").tap()
    expect(answer(phone).locator(".versions__number")).to_have_text("2/2")
    wait_for_end(phone)
    phone.wait_for_timeout(300)
    found = too_small(
        phone,
        ".topbar .icon-button:visible",
        ".message--assistant .icon-button:enabled",
        ".message--assistant [data-details]",
        ".code__copy",
        ".composer__send",
    )
    found += too_small(phone, ".message--user .icon-button:visible")
    phone.locator(".topbar [data-toggle-sidebar]").tap()
    phone.wait_for_timeout(400)
    found += too_small(phone, ".sidebar__link", ".sidebar .icon-button:visible", ".sidebar__new")
    assert found == []
