"""The rules of scrolling: the reader decides."""

from statistics import median

from playwright.sync_api import Page, Route, expect

from tests.browser.steps import answer, ask, scroll_top, start_chat, wait_for_end, wait_for_words


def fill_chat(page: Page) -> None:
    start_chat(page, "echo pace=4000 " + "line after line\n\n" * 60)
    wait_for_end(page)


DISTANCE = (
    "(s => s.scrollHeight - s.clientHeight - s.scrollTop)(document.getElementById('scroller'))"
)

ARRIVAL = """(time) => document.styleSheets[0].insertRule(
  `.message--new { animation-duration: ${time} !important }`,
  document.styleSheets[0].cssRules.length,
)"""


def is_at_the_end(page: Page) -> bool:
    """Looked at five times while text may be coming: a look can fall between text and scroll."""
    distances = []
    for _ in range(5):
        distances.append(float(page.evaluate(DISTANCE)))
        page.wait_for_timeout(70)
    return median(distances) < 4


def test_the_question_goes_near_the_top_when_it_is_sent(page: Page) -> None:
    fill_chat(page)
    ask(page, "echo short")
    expect(page.locator(".message--user")).to_have_count(2)
    wait_for_end(page)
    box = page.locator(".message--user").last.bounding_box()
    assert box is not None
    assert 50 < box["y"] < 110


def test_a_question_that_still_moves_in_goes_where_it_will_rest(page: Page) -> None:
    fill_chat(page)
    page.evaluate(ARRIVAL, "60s")
    held: list[Route] = []
    page.route("**/messages/", lambda route: held.append(route))
    ask(page, "echo short")
    expect(page.locator(".message--user")).to_have_count(2)
    page.evaluate(ARRIVAL, "0s")
    rest = page.evaluate(
        "document.querySelectorAll('.message--user')[1].getBoundingClientRect().top"
        " - document.getElementById('scroller').getBoundingClientRect().top"
    )
    assert abs(rest - 16) < 2
    held[0].continue_()
    wait_for_end(page)


def test_the_answer_is_followed_while_pinned(page: Page) -> None:
    fill_chat(page)
    ask(page, "pace=300 ".join(["echo ", "more words here\n\n" * 80]))
    wait_for_words(page, "more words here")
    page.wait_for_timeout(3000)
    assert is_at_the_end(page)


def test_an_upward_wheel_unpins_at_once_and_the_button_pins_again(page: Page) -> None:
    fill_chat(page)
    ask(page, "pace=150 ".join(["echo ", "more words here\n\n" * 120]))
    wait_for_words(page, "more words here")
    page.mouse.move(700, 300)
    page.mouse.wheel(0, -300)
    page.wait_for_timeout(300)
    held = scroll_top(page)
    page.wait_for_timeout(1000)
    assert abs(scroll_top(page) - held) < 2
    page.get_by_role("button", name="To the bottom").click()
    page.wait_for_timeout(500)
    assert is_at_the_end(page)


def test_the_end_of_a_stream_does_not_move_the_reader(page: Page) -> None:
    fill_chat(page)
    ask(page, "count 60 pace=60")
    wait_for_words(page, "50")
    before = scroll_top(page)
    wait_for_end(page)
    page.wait_for_timeout(400)
    assert abs(scroll_top(page) - before) < 2


def test_the_buttons_of_a_long_answer_are_seen_when_it_ends(page: Page) -> None:
    fill_chat(page)
    ask(page, "echo pace=400 " + "more words here\n\n" * 60)
    wait_for_words(page, "more words here")
    wait_for_end(page)
    foot = answer(page).locator(".message__foot").bounding_box()
    dock = page.locator(".dock").bounding_box()
    assert foot is not None
    assert dock is not None
    assert foot["y"] + foot["height"] <= dock["y"]


def test_switching_versions_does_not_move_the_reader(page: Page) -> None:
    fill_chat(page)
    ask(page, "echo short")
    wait_for_end(page)
    answer(page).get_by_role("button", name="Answer again").click()
    expect(answer(page).locator(".versions__number")).to_have_text("2/2")
    wait_for_end(page)
    before = scroll_top(page)
    answer(page).get_by_role("button", name="Previous version").click()
    expect(answer(page).locator(".versions__number")).to_have_text("1/2")
    assert abs(scroll_top(page) - before) < 2
