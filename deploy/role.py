"""The one entry point of every process of a cluster: python deploy/role.py ROLE

setup     once, before the others: tables, the default model's release
pages     the pages, by WSGI
realtime  sockets and health, by ASGI (it could serve the pages too)
worker    runs a model, and takes messages from Celery
beat      sends Celery's messages that are due by the clock

DATABASE_URL and REDIS_URL say where the rest is; docs/settings.md has everything else.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sys.executable


def gunicorn(config: str) -> list[str]:
    return [PYTHON, "-m", "gunicorn", "-c", str(ROOT / "deploy" / config)]


def manage(*words: str) -> list[str]:
    return [PYTHON, str(ROOT / "manage.py"), *words]


ROLES = {
    "setup": manage("setup"),
    "pages": gunicorn("pages.conf.py"),
    "realtime": gunicorn("gunicorn.conf.py"),
    "worker": manage("worker"),
    "beat": [PYTHON, "-m", "celery", "--app", "chatsite.celery", "--quiet", "beat"],
}

LASTING = ("pages", "realtime", "worker")  # and open connections for as long as they live


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in ROLES:
        raise SystemExit(f"Name a role: {', '.join(ROLES)}.\n\n{__doc__}")
    os.chdir(ROOT)
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chatsite.settings")
    if sys.argv[1] in LASTING:
        os.environ["CHATSITE_ROLE"] = sys.argv[1]  # PostgreSQL shows it, and counts by it
    command = [*ROLES[sys.argv[1]], *sys.argv[2:]]
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
