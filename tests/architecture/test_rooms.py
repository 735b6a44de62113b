"""The house rules that a machine can check: rooms, sizes, doors."""

import ast
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
ROOMS = ("accounts", "inference", "chats", "chatsite")
FORBIDDEN_NAMES = {"utils", "helpers", "services", "common", "core", "signals", "misc"}
MODULE_LINES = 400
PARTIAL_LINES = 60


def modules(*folders: str) -> list[Path]:
    files = (path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return sorted(path for path in files if "migrations" not in path.parts)


def functions(folders: tuple[str, ...] = ROOMS) -> Iterator[tuple[str, int]]:
    """Name and length in lines of every function, docstring not counted."""
    for path in modules(*folders):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{path.relative_to(ROOT)}:{node.name}", _length(node)


def _length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    end = node.end_lineno or node.lineno
    doc = node.body[0] if ast.get_docstring(node) is not None else None
    doc_lines = (doc.end_lineno or doc.lineno) - doc.lineno + 1 if doc else 0
    return end - node.lineno + 1 - doc_lines


def files_with(pattern: str, folders: tuple[str, ...], *suffixes: str) -> set[str]:
    expression = re.compile(pattern)
    paths = (path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file())
    return {
        str(path.relative_to(ROOT))
        for path in paths
        if path.suffix in suffixes and expression.search(path.read_text())
    }


def test_imports_run_one_way():
    program = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([program, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_no_module_has_a_name_that_says_nothing():
    names = [path for path in modules(*ROOMS) if {path.stem, path.parent.name} & FORBIDDEN_NAMES]
    assert names == []


def test_the_apps_meet_without_signals():
    assert (
        files_with(
            r"django\.(db\.models|dispatch|core)[.\w]* import .*(receiver|post_save)", ROOMS, ".py"
        )
        == set()
    )
    assert files_with(r"from django\.db\.models\.signals|@receiver", ROOMS, ".py") == set()


def test_no_module_is_too_long():
    everything = modules(*ROOMS, "tests", "deploy", "bench")
    sizes = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in everything}
    assert {name: size for name, size in sizes.items() if size > MODULE_LINES} == {}


def test_functions_are_short():
    lengths = sorted(length for _, length in functions())
    assert [name for name, length in functions() if length > 50] == []
    assert statistics.median(lengths) <= 10
    assert lengths[int(len(lengths) * 0.9)] <= 25


def test_partials_are_short():
    long = [
        p.name
        for p in (ROOT / "templates").rglob("_*.html")
        if len(p.read_text().splitlines()) > PARTIAL_LINES
    ]
    assert long == []


def test_markdown_is_the_only_door_for_html():
    doors = files_with(r"\bmark_safe\b|\bSafeString\(|\bSafeData\b", ROOMS, ".py")
    assert doors <= {"chats/markdown.py"}
    # Django's own help texts for passwords are HTML.
    unescaped = files_with(r"\|\s*safe\b|autoescape off", ("templates", *ROOMS), ".html")
    assert unescaped <= {"templates/accounts/_form.html"}


def test_scripts_have_one_door_for_html():
    """Markdown in markdown.js, server partials in http.js, highlighted code in code.js."""
    doors = files_with(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|setHTMLUnsafe|createContextualFragment"
        r"|parseFromString|\beval\(|new Function\(",
        ("static",),
        ".js",
        ".mjs",
    )
    assert doors == {f"static/js/{name}.js" for name in ("markdown", "http", "code")}


def test_templates_have_no_inline_script_or_style():
    inline = r"<[^>]+\sstyle=|<[^>]+\son[a-z]+=|<style|javascript:"
    assert files_with(inline, ("templates",), ".html") == set()
    scripts = re.compile(r"<script(?![^>]*(src=|nonce=))", re.DOTALL)
    pages = (ROOT / "templates").rglob("*.html")
    assert [page.name for page in pages if scripts.search(page.read_text())] == []


def test_other_servers_are_spoken_to_through_one_door():
    """The supervisor asks only the site's own web process how it is."""
    others = r"(import|from) +(requests|aiohttp|urllib3|urllib\.request|http\.client)\b"
    clients = r"httpx\.(Async)?Client\(|httpx\.(get|post|request|stream)\(|from httpx"
    doors = files_with(f"{others}|{clients}", ROOMS, ".py")
    assert doors - {"chatsite/supervisor.py"} == {"inference/engines/outbound.py"}


def test_nothing_comes_from_other_hosts():
    outside = r"""(src|href|action|url\(|import|from)\s*=?\s*["'(]\s*(https?:)?//"""
    assert files_with(outside, ("templates", "static"), ".html", ".css", ".js") == set()


@pytest.mark.parametrize("word", ["pickle", "marshal", "shelve", "yaml.load"])
def test_nothing_is_unpickled(word):
    assert files_with(rf"\b{re.escape(word)}\b", ROOMS, ".py") == set()
