"""A whole site (web and worker, the simulated model) and a headless Chromium to visit it with."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from bench.site import Site

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync --renderer-process-limit=1"
).split()

expect.set_options(timeout=15_000)  # the machine may be busy; what does not come fails all the same


@dataclass
class Visit:
    """A page and everything it complained about."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)

    def listen(self) -> None:
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.hosts.add(request.url.split("/")[2]))

    def forgive(self, words: str) -> None:
        """Complaints the test has caused itself; there must be no others."""
        assert all(words in complaint for complaint in self.complaints), self.complaints
        self.complaints.clear()

    def _heard(self, message: object) -> None:
        if getattr(message, "type", "") in {"error", "warning"}:
            self.complaints.append(str(getattr(message, "text", message)))


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    running = Site(tmp_path_factory.mktemp("site"), "simulated")
    running.install()
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if not CHROMIUM:
        pytest.skip("chromium is not installed")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, headless=True)
        yield chromium
        chromium.close()


@pytest.fixture
def context(browser: Browser, site: Site) -> Iterator[BrowserContext]:
    opened = browser.new_context(base_url=site.url, viewport={"width": 1280, "height": 800})
    opened.set_default_timeout(15_000)
    yield opened
    opened.close()


@pytest.fixture
def visit(context: BrowserContext) -> Iterator[Visit]:
    """Fails the test when the page logged an error or asked another host for anything."""
    found = Visit(context.new_page())
    found.listen()
    yield found
    assert found.complaints == []
    assert len(found.hosts) <= 1


@pytest.fixture
def page(visit: Visit) -> Page:
    return visit.page
