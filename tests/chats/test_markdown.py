"""What Markdown may and may not become."""

import time

import pytest

from chats.markdown import MAX_CHARACTERS, render


def test_raw_html_is_shown_and_not_obeyed() -> None:
    assert render("<img src=x onerror=alert(1)>") == ("<p>&lt;img src=x onerror=alert(1)&gt;</p>\n")


@pytest.mark.parametrize(
    "address",
    [
        "javascript:alert(1)",
        "JaVaScRiPt:alert(1)",
        "data:text/html,x",
        "vbscript:x",
        "file:///etc/passwd",
        "/relative",
        "//host.example/x",
        "https:no-slashes",
        "https://good.example@evil.example/",
    ],
)
def test_only_absolute_web_and_mail_addresses_become_links(address: str) -> None:
    assert "<a" not in render(f"[x]({address})")


def test_a_link_opens_apart_and_tells_the_other_side_nothing() -> None:
    html = render("<https://example.com/a>")
    assert 'target="_blank"' in html
    assert 'rel="noopener noreferrer nofollow"' in html


def test_a_link_says_its_host_when_its_text_does_not() -> None:
    assert "(evil.example)" in render("[good.example](https://evil.example/)")
    assert "(example.com)" not in render("<https://example.com/>")


def test_a_picture_is_a_link_and_is_never_fetched() -> None:
    html = render("![a cat](https://example.com/cat.png)")
    assert "<img" not in html
    assert ">a cat</a>" in html


def test_a_picture_in_a_link_does_not_nest_links() -> None:
    assert render("[![a](https://a.example/)](https://b.example/)").count("<a ") == 1


def test_a_fence_says_its_language_and_nothing_else() -> None:
    html = render('```py"><script>\nx\n```')
    assert "<script" not in html
    assert 'class="language-py"' in render("```py\nx\n```")


def test_text_that_is_too_long_is_shown_plain() -> None:
    assert render("*a* " * MAX_CHARACTERS).startswith('<p class="plain">*a* ')


def test_blocks_nested_too_deeply_are_shown_plain_and_whole() -> None:
    text = "\n".join(f"{'  ' * depth}- level {depth}" for depth in range(60))
    assert "level 59" in render(text)


def test_lone_surrogates_and_control_characters_do_no_harm() -> None:
    assert render("a\ud800b\x00c\x1b[31m") == "<p>a\ufffdb\ufffdc[31m</p>\n"


@pytest.mark.parametrize(
    "text",
    [
        "[" * 50_000,
        "*" * 50_000,
        ">" * 50_000,
        "> " * 25_000,
        "`" * 50_000,
        "`a" * 25_000,
        "**a" * 16_000,
        "[a](" * 9_000,
        "![" * 25_000,
        "https://a" * 5_000,
        "- a\n" * 20_000,
        "|" + "x|" * 300 + "\n|" + "-|" * 300 + ("\n|" + "x|" * 300) * 100,
    ],
    ids=lambda text: text[:6],
)
def test_a_bomb_is_rendered_in_bounded_time(text: str) -> None:
    start = time.process_time()
    render(text)
    assert time.process_time() - start < 4


@pytest.mark.parametrize(
    "text",
    [
        "|a" * 350 + "|\n" + "|-" * 350 + "|\n" + "|b\n" * 300,
        "|a" * 60 + "|\n" + "|-" * 60 + "|\n" + "|b\n" * 10_000,
        "> " * 35 + "a\n" + "lazy\n" * 2000,
        "[a]: https://example.com/" + "x" * 2000 + "\n\n" + "[a] " * 2000,
        ("![" * 199 + "a") * 240,
        ("[" * 399 + "a") * 240,
    ],
)
def test_a_text_that_would_grow_out_of_proportion_is_shown_plain(text):
    started = time.monotonic()
    html = render(text)
    assert html.startswith('<p class="plain">')
    assert len(html) < 2 * len(text) + 1000
    assert time.monotonic() - started < 2


def test_a_link_whose_words_only_contain_its_host_still_names_it():
    assert "(gle.com)" in render("[google.com](https://gle.com/x)")
    assert "link__host" not in render("[https://example.com/a](https://example.com/b)")
