"""A page that is still open when the site's next release speaks another protocol."""

import re

import pytest
from playwright.sync_api import Page, WebSocketRoute, expect

from tests.browser.conftest import Visit
from tests.browser.steps import ask, question, start_chat, wait_for_end, wait_for_words
from tests.browser.test_sending_failures import UNSENT, box, fail

HELLO = '{"type": "hello", "protocol": 2}'


class Door:
    """Where the page's sockets go: to today's server, or to the next release, which ends them."""

    def __init__(self, page: Page) -> None:
        self.is_newer = False
        self.addresses: list[str] = []
        self._last: WebSocketRoute | None = None
        page.route_web_socket(re.compile("/ws/"), self._open)

    def _open(self, socket: WebSocketRoute) -> None:
        self.addresses.append(socket.url)
        self._last = socket
        if self.is_newer:
            socket.send(HELLO)
            socket.close(code=1003)
        else:
            socket.connect_to_server()

    def deploy(self) -> None:
        """The next release is there: the open socket ends, and the page comes back to it."""
        self.is_newer = True
        assert self._last
        self._last.close(code=1012)


@pytest.fixture
def door(visit: Visit) -> Door:
    made = Door(visit.page)
    start_chat(visit.page, "echo hello")
    wait_for_end(visit.page)
    return made


def test_row_43_a_page_too_old_for_the_server_loads_itself_and_keeps_all_text(
    visit: Visit, door: Door
) -> None:
    page = visit.page
    page.route("**/messages/", fail)
    ask(page, "echo only once")
    expect(page.locator(UNSENT).or_(question(page))).not_to_have_count(0)
    page.get_by_label("Your message").fill("half a thought")
    with page.expect_event("load"):
        door.deploy()
    door.is_newer = False  # its scripts are new now
    assert box(page) == "half a thought"
    page.unroute("**/messages/")
    wait_for_words(page, "only once")
    expect(page.locator(".message--user", has_text="only once")).to_have_count(1)
    assert door.addresses[0].endswith("/ws/?protocol=1")
    visit.forgive("ERR_FAILED")


def test_row_43_a_question_that_is_being_edited_is_waited_for(visit: Visit, door: Door) -> None:
    page = visit.page
    question(page).hover()
    question(page).get_by_role("button", name="Edit the question").click()
    page.evaluate("window.isOld = true")
    page.get_by_label("Your question").fill("echo edited")
    door.deploy()
    page.wait_for_timeout(2500)
    assert page.evaluate("window.isOld")
    with page.expect_event("load"):
        page.get_by_label("Your question").press("Escape")


def test_row_43_a_page_that_stays_too_old_is_loaded_once_a_minute_at_most(
    visit: Visit, door: Door
) -> None:
    page = visit.page
    with page.expect_event("load"):
        door.deploy()
    page.evaluate("window.isOld = true")
    page.wait_for_timeout(3000)
    assert page.evaluate("window.isOld")
    assert 1 < len(door.addresses) < 12  # it goes on trying to connect, ever less often
