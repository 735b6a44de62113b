"""`manage.py serve` as a person uses it: start, kill, start again, start twice, stop."""

import asyncio
import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.conf import settings as site_settings

from bench.reader import Reader
from bench.site import MODELS, Person, Site

pytestmark = pytest.mark.skipif(
    "sqlite" not in site_settings.DATABASES["default"]["ENGINE"],
    reason="serve is the embedded profile: SQLite",
)
COUNTED = " ".join(str(number) for number in range(1, 151))
COUNT = "count 150 pace=150"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated, empty database to begin with."""
    folder = tmp_path_factory.mktemp("database")
    done = Site(folder, "simulated").manage("migrate")
    assert done.returncode == 0, done.stderr
    return folder / "chatsite.sqlite3"


def installed(folder: Path, database: Path, model: str = "simulated", **names: str) -> Site:
    shutil.copy(database, folder)
    return Site(folder, model, STATIC_HASHED="0", **names)


@pytest.fixture
def site(tmp_path: Path, database: Path) -> Iterator[Site]:
    made = installed(tmp_path, database, DRAIN_SECONDS="1")
    made.start()
    yield made
    if made.process and made.process.poll() is None:
        made.stop()


def is_running(pid: int) -> bool:
    """Whether a process exists and is more than an entry nobody has collected yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def begin(site: Site, text: str = COUNT, until: int = 60) -> Reader:
    person = await Person(site).arrive()
    reader = Reader(person, await person.ask(text))
    await reader.read(until)
    return reader


async def test_row_45_the_whole_site_is_killed_and_the_answer_goes_on_after_a_restart(site: Site):
    reader = await begin(site)
    site.kill_everything()
    site.start()
    await reader.finish()
    assert (reader.text, reader.status) == (COUNTED, "done")


async def test_row_1_a_killed_worker_is_started_again_and_the_same_socket_goes_on(site: Site):
    reader = await begin(site)
    os.kill(site.pid_of("worker"), signal.SIGKILL)
    killed_at = time.monotonic()
    await reader.read(len(reader.text) + 1)
    assert time.monotonic() - killed_at < 10  # generous; the goal is 5 s
    await reader.finish()
    assert (reader.text, reader.status) == (COUNTED, "done")


async def test_a_killed_web_process_loses_nothing(site: Site):
    reader = await begin(site)
    os.kill(site.pid_of("web"), signal.SIGKILL)
    await reader.finish()
    assert (reader.text, reader.status) == (COUNTED, "done")


async def test_row_2_a_killed_supervisor_takes_its_children_with_it(site: Site):
    reader = await begin(site)
    pids = site.pids
    assert site.process
    site.process.kill()
    site.process.wait(10)
    deadline = time.monotonic() + 30
    while any(map(is_running, pids)):
        assert time.monotonic() < deadline, "something was left running"
        await asyncio.sleep(0.1)
    site.start()
    await reader.finish()
    assert (reader.text, reader.status) == (COUNTED, "done")


async def test_ctrl_c_hands_the_answer_over_and_leaves_nothing_running(site: Site):
    reader = await begin(site, "count 400 pace=100")
    pids = site.pids
    assert site.process
    site.process.send_signal(signal.SIGINT)
    assert site.process.wait(25) == 0
    assert not any(map(is_running, pids))
    assert not list((site.data / "run").glob("*.bell"))
    site.start()
    await reader.read(len(reader.text) + 20)
    assert reader.text.startswith("1 2 3 4 5 6 7 8 9 10 11")


async def test_people_see_what_is_written_after_ctrl_c_and_a_new_start_waits_for_it(site: Site):
    site.stop()
    site.environment["DRAIN_SECONDS"] = "10"
    site.start()
    reader = await begin(site, "count 100 pace=100")
    ending = site.process
    assert ending
    ending.send_signal(signal.SIGINT)
    starting = asyncio.create_task(asyncio.to_thread(site.start))  # which waits for its end
    await reader.read()  # on one socket
    assert (reader.text, reader.status) == (" ".join(map(str, range(1, 101))), "done")
    assert ending.wait(25) == 0
    await starting
    site._wait_until_ready(30)


def test_row_46_a_second_start_on_the_same_data_says_where_the_first_one_is(site: Site):
    second = site.manage("serve")
    assert second.returncode != 0
    assert f"already running on this data, at {site.url}/" in second.stderr
    assert "Traceback" not in second.stderr


def test_a_taken_port_is_one_sentence_and_what_to_do(tmp_path: Path, database: Path):
    site = installed(tmp_path, database)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", int(site.environment["PORT"])))
        taken.listen()
        failed = site.manage("serve")
    assert failed.returncode != 0
    assert "Choose another port" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_a_database_without_its_tables_is_one_sentence(tmp_path: Path):
    failed = Site(tmp_path, "simulated").manage("serve")
    assert "Run: ./manage.py migrate" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_a_missing_model_says_how_to_fetch_it(tmp_path: Path, database: Path):
    empty = tmp_path / "models"
    site = installed(tmp_path, database, "smollm2-135m-instruct", MODELS_DIR=str(empty))
    failed = site.manage("serve")
    assert "models pull smollm2-135m-instruct" in failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "abc"),
        ("PORT", "70000"),
        ("WORKER_SLOTS", "0"),
        ("CONTEXT_TOKENS", "-5"),
        ("DRAIN_SECONDS", "nan"),
        ("RATE_LIMIT_SEND", "foo"),
        ("TIME_ZONE", "Mars"),
        ("LOG_LEVEL", "loud"),
        ("HTTPS", "maybe"),
        ("DATABASE_URL", "mysql://me:secret@host/name"),
    ],
)
def test_a_setting_out_of_range_is_named_in_one_sentence(tmp_path: Path, name: str, value: str):
    refused = Site(tmp_path, "simulated")
    refused.environment[name] = value
    failed = refused.manage("check")
    assert failed.returncode == 1
    assert f"{name} must be " in failed.stderr
    assert "Traceback" not in failed.stderr
    assert "secret" not in failed.stderr


def test_a_data_folder_that_may_not_be_written_is_one_sentence(tmp_path: Path):
    folder = tmp_path / "file"
    folder.write_text("")  # tests may run as root, whom no mode stops
    failed = Site(tmp_path, "simulated", DATA_DIR=str(folder)).manage("doctor")
    assert failed.returncode == 1
    assert f"The data folder {folder} cannot be used" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_a_retired_model_is_told_and_put_live_again(tmp_path: Path, database: Path):
    site = installed(tmp_path, database)
    site.manage("models", "pull", "simulated")
    retire = "from inference.models import Release; Release.objects.update(state='retired')"
    assert site.manage("shell", "-c", retire).returncode == 0
    failed = site.manage("serve")
    assert "No release of it is live. Run: ./manage.py models promote simulated" in failed.stderr
    assert "is live" in site.manage("models", "promote", "simulated").stdout
    assert site.manage("generate", "count 2").stdout.startswith("1 2")


def test_a_start_while_a_killed_site_still_drains_waits_for_it(site: Site):
    assert site.process
    worker = site.pid_of("worker")
    site.process.kill()
    site.process.wait(10)
    site.start()
    assert not is_running(worker)


def test_a_model_nobody_knows_is_named_with_those_that_are_known(tmp_path: Path, database: Path):
    site = installed(tmp_path, database, "gpt-9")
    assert "Known: simulated, smollm2-135m-instruct" in site.manage("serve").stderr


@pytest.mark.real_model
def test_a_broken_model_file_ends_the_start_with_one_sentence(tmp_path: Path, database: Path):
    models = tmp_path / "models"
    models.mkdir()
    name = "SmolLM2-135M-Instruct.Q4_1.gguf"
    whole = (MODELS / name).read_bytes()
    (models / name).write_bytes(whole[: len(whole) // 2])
    site = installed(tmp_path, database, "smollm2-135m-instruct", MODELS_DIR=str(models))
    failed = site.manage("serve")
    assert failed.returncode != 0
    assert "models verify" in failed.stderr
    assert "Traceback" not in failed.stderr
