"""Papers that go wrong in silence: settings, dependencies, locks, and what must not be told."""

import re
import subprocess
import tomllib
from pathlib import Path

from inference.engines.base import BIAS, BIASES, RANGES, Sampling

ROOT = Path(__file__).resolve().parent.parent.parent
LOCKS = ("requirements.lock", "requirements-dev.lock", "deploy/node.lock", "deploy/build.lock")
VLLM = "tests/vllm/requirements.txt"
FROM_ENVIRONMENT = re.compile(r'(?:environ\.get|env_\w+)\(\s*"([A-Z_]+)"')
FIRST_CELL = re.compile(r"^\| `([^`]+)` \|", re.MULTILINE)
# Letters kept apart so that this file does not find itself.
PRIVATE = re.compile(
    r"/(root|home/\w+|opt|work)/|py" + r"pi\.org|files\.pythonhosted|registry\.np" + r"mjs"
)


def tracked_files() -> list[Path]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.check_output(command, cwd=ROOT, text=True).splitlines()
    return [ROOT / name for name in names if (ROOT / name).is_file()]


def names_in_table(page: str) -> set[str]:
    return set(FIRST_CELL.findall((ROOT / "docs" / page).read_text()))


def test_the_settings_page_has_every_setting_and_no_other():
    read = set(FROM_ENVIRONMENT.findall((ROOT / "chatsite" / "settings.py").read_text()))
    assert names_in_table("settings.md") == read


def test_the_dependencies_page_has_every_package_and_no_other():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    python = {re.split(r"[\[<>=]", requirement)[0] for requirement in wanted}
    front = json_dependencies()
    assert names_in_table("dependencies.md") == python | front


def test_the_sampling_page_has_every_parameter_with_its_range_and_default():
    page = (ROOT / "docs" / "sampling.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \|", page, re.MULTILINE)
    ranges = {name: values for name, values, _ in rows}
    assert list(ranges) == list(Sampling.__dataclass_fields__)
    for name, (low, high) in RANGES.items():
        assert ranges[name].removeprefix("none, ") == f"{low} to {high}"
    plain = Sampling()
    for name, _, default in rows:
        if name not in ("seed", "max_tokens"):  # resolved by Release.sampling_for
            assert default == str(getattr(plain, name) if name in RANGES else "none").lower()
    assert f"{-BIAS} to {BIAS}}}, up to {BIASES}" in ranges["logit_bias"]


def json_dependencies() -> set[str]:
    import json

    package = json.loads((ROOT / "package.json").read_text())
    return {*package.get("dependencies", {}), *package.get("devDependencies", {})}


def test_everything_locked_has_a_hash_and_no_address():
    for name in (*LOCKS, VLLM):
        text = (ROOT / name).read_text()
        assert "://" not in text
        requirements = re.split(r"^(?=\S)", text, flags=re.MULTILINE)[1:]
        assert [r for r in requirements if "==" not in r or "--hash=sha256:" not in r] == []


def test_the_development_lock_has_the_same_versions():
    locked = [
        set(re.findall(r"^\S+==\S+", (ROOT / name).read_text(), re.MULTILINE)) for name in LOCKS[:2]
    ]
    assert locked[0] <= locked[1]


def test_no_file_names_a_machine_path_or_a_registry():
    texts = {path: path.read_bytes().decode(errors="replace") for path in tracked_files()}
    found = {
        str(path.relative_to(ROOT)): m[0]
        for path, text in texts.items()
        if (m := PRIVATE.search(text))
    }
    assert found == {}


def test_every_test_says_what_it_expects():
    """A test's name is a sentence: at least three words."""
    names = [
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"def (test_\w+)", path.read_text())
    ]
    assert [name for name in names if name.count("_") < 3] == []


def test_every_fault_in_the_docs_has_tests_and_every_such_test_is_in_the_docs():
    page = (ROOT / "docs" / "faults.md").read_text()
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = re.findall(r"^ *(?:async )?def (?:test_row_)(\d+)(?:_and_(\d+))?_", tests, re.MULTILINE)
    told = re.findall(r"^\| (\d+) \|", page, re.MULTILINE)
    assert sorted({int(row) for rows in named for row in rows if row}) == [int(row) for row in told]
