"""A model file of somebody's own choice, fetched, tried and recorded as a release."""

import re
from dataclasses import dataclass
from pathlib import Path

from django.conf import settings

from inference.audit import By
from inference.catalogue import Entry, register
from inference.download import Advance
from inference.engines.trial import prove
from inference.hashes import sha256_of
from inference.model_files import Wanted, fetch, is_verified, of_entry
from inference.releases import Model, Release
from inference.sources import LocalFile, ModelFileError, Source, file_name, outside, parse

SLUG = re.compile(r"[a-z0-9][a-z0-9-]{0,79}")
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Pull:
    source: Source
    slug: str
    title: str
    sha256: str
    context_tokens: int | None
    path: Path

    @classmethod
    def of(
        cls,
        source: str,
        *,
        name: str | None,
        title: str | None = None,
        sha256: str = "",
        trust_first_use: bool = False,
        context: int | None = None,
        is_public: bool = False,
        **_: object,
    ) -> "Pull":
        """Raises ModelFileError unless it is said where from, what as, and how it is known.

        is_public: it is asked for by somebody who may not reach what is not public.
        """
        found = outside(source) if is_public else parse(source)
        if not SLUG.fullmatch(name or ""):
            raise ModelFileError("Give the model a name: --name my-model")
        if sha256 and not SHA256.fullmatch(sha256.lower()):
            raise ModelFileError("--sha256 takes 64 hexadecimal digits.")
        if not (sha256 or trust_first_use or isinstance(found, LocalFile)):
            raise ModelFileError(
                "Say what the file must be: --sha256 HEX, as its publisher states it. "
                "Or take what comes and record its hash: --trust-first-use"
            )
        path = Path(settings.MODELS_DIR) / file_name(found)
        return cls(found, name or "", title or name or "", sha256.lower(), context, path)

    def run(self, download: Advance, unpack: Advance, by: By) -> Release:
        """Raises ModelFileError, and EngineError for a file that is broken."""
        sha256 = self._file_in_place() or self._fetch(download, unpack)
        model = Model.named(self.slug, title=self.title)
        return model.add_release(self.path, by, sha256=sha256, context_tokens=self.context_tokens)

    def _file_in_place(self) -> str:
        """The hash of a file that need not be fetched; a file of another kind stays as it is."""
        if not self.path.exists():
            return ""
        found = sha256_of(self.path)
        if found != self.sha256 and self.source != LocalFile(self.path.resolve()):
            raise ModelFileError(
                f"A file {self.path.name} is here already. If it is the same, say so with "
                f"--sha256 {found}; else rename one of them."
            )
        if self.sha256 and found != self.sha256:
            raise ModelFileError(f"{self.path.name} is not that file: its SHA-256 is {found}.")
        _try(self.path, found)
        return found

    def _fetch(self, download: Advance, unpack: Advance) -> str:
        return fetch(self.source, Wanted(self.path, self.sha256), download, unpack, _try)


def pull_known(entry: Entry, download: Advance, unpack: Advance, by: By) -> Release:
    """What the catalogue has: its file, unless it is here already, and its release."""
    wanted = of_entry(entry, settings.MODELS_DIR)
    if entry.source and not is_verified(wanted):
        fetch(entry.source, wanted, download, unpack)
    return register(entry, by)


def _try(path: Path, sha256: str) -> None:
    prove(path, sha256, Path(settings.DATA_DIR) / "trials")
