"""axe finds nothing on any page, in light and in dark."""

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page

from bench.site import ROOT, Site
from tests.browser.steps import start_chat, wait_for_end

AXE = ROOT / "node_modules" / "axe-core" / "axe.min.js"
CONTENT = "echo # T\n\ntext `c` [l](https://e.com)\n\n```py\nx = 1\n```\n\n|a|b|\n|-|-|\n|1|2|"


@pytest.fixture(params=["light", "dark"])
def themed(request: pytest.FixtureRequest, browser: Browser, site: Site) -> Iterator[Page]:
    # axe is put into the page by the test, past the policy that keeps scripts out.
    context: BrowserContext = browser.new_context(
        base_url=site.url, color_scheme=request.param, bypass_csp=True, reduced_motion="reduce"
    )
    yield context.new_page()
    context.close()


def violations(page: Page) -> list[str]:
    page.add_script_tag(path=AXE)
    found: Any = page.evaluate("axe.run().then(result => result.violations)")
    return [
        f"{one['id']}: {node['html']} {node['failureSummary']}"
        for one in found
        for node in one["nodes"]
    ]


@pytest.mark.parametrize("path", ["/", "/accounts/login/", "/accounts/signup/", "/accounts/"])
def test_axe_finds_nothing_on_a_page(themed: Page, path: str) -> None:
    themed.goto(path)
    assert violations(themed) == []


def test_axe_finds_nothing_on_a_chat_and_the_list(themed: Page) -> None:
    start_chat(themed, CONTENT)
    wait_for_end(themed)
    assert violations(themed) == []
    themed.locator("[data-details]").click()
    themed.locator("#details dl").wait_for()
    assert violations(themed) == []
    themed.goto(str(themed.locator("[data-details]").get_attribute("href")))
    assert violations(themed) == []
    themed.goto("/chats/")
    assert violations(themed) == []


def test_axe_finds_nothing_in_the_dialog_or_the_drawer(themed: Page) -> None:
    themed.goto("/")
    themed.keyboard.press("Control+/")
    assert violations(themed) == []
    themed.keyboard.press("Escape")
    themed.set_viewport_size({"width": 390, "height": 844})
    themed.locator(".topbar [data-toggle-sidebar]").click()
    assert violations(themed) == []
