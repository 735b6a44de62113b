"""The signing key of an installation that was not given one."""

import contextlib
import os
import secrets
import tempfile
from pathlib import Path


def load_or_create_secret(path: Path) -> str:
    """Return the key stored at `path`, making a 64-character one (mode 0600) the first time.

    Two processes may start at once, and a disk may be full: the key is written whole under
    another name first, and whoever links it into place first has decided for both.
    """
    if not path.exists():
        with tempfile.NamedTemporaryFile("w", dir=path.parent, encoding="ascii") as file:
            file.write(secrets.token_urlsafe(48))
            file.flush()
            os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(file.name, path)
    return path.read_text(encoding="ascii").strip()
