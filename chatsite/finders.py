"""Static files out of node_modules: only those the pages load, under short names."""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.staticfiles.finders import BaseFinder
from django.core.checks import CheckMessage, Error
from django.core.files.base import ContentFile, File
from django.core.files.storage import FileSystemStorage, Storage

NODE_MODULES = Path(settings.BASE_DIR) / "node_modules"
FILES = {
    "vendor/markdown-it.js": "markdown-it/dist/browser/markdown-it.esm.min.mjs",
    "vendor/markdown-it.LICENSE": "markdown-it/LICENSE",
    "vendor/highlight.js": "@highlightjs/cdn-assets/es/highlight.min.js",
    "vendor/highlight.LICENSE": "@highlightjs/cdn-assets/LICENSE",
}


class PackageStorage(FileSystemStorage):
    """Reads a file of an npm package by the name it is served under."""

    def path(self, name: str) -> str:
        return str(NODE_MODULES / FILES[Path(name).as_posix()])

    def _open(self, name: str, mode: str = "rb") -> File[Any]:
        """Without the source map comment, which points to a file that is not served."""
        lines = Path(self.path(name)).read_bytes().splitlines(keepends=True)
        return ContentFile(b"".join(x for x in lines if not x.startswith(b"//# sourceMappingURL")))


class NpmFinder(BaseFinder):
    """Finds the files above; `npm ci` puts them there."""

    storage = PackageStorage(location=str(NODE_MODULES))

    def find(self, path: str, find_all: bool = False, **kwargs: Any) -> Any:
        source = NODE_MODULES / FILES[path] if path in FILES else None
        found = [str(source)] if source and source.is_file() else []
        return found if find_all else "".join(found)

    def list(self, ignore_patterns: Iterable[str] | None) -> Iterator[tuple[str, Storage]]:
        return ((name, self.storage) for name in FILES if self.find(name))

    def check(self, **kwargs: Any) -> builtins.list[CheckMessage]:
        missing = [name for name in FILES if not self.find(name)]
        hint = "Run `npm ci` in the folder of package.json."
        return [
            Error(f"{name} is not installed.", hint=hint, id="chatsite.E020") for name in missing
        ]
