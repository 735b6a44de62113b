"""A model file of somebody's own choice, fetched, tried and recorded as a release."""

from dataclasses import dataclass
from pathlib import Path

from django.conf import settings

from inference.audit import By
from inference.catalogue import CATALOGUE, Entry
from inference.download import Advance
from inference.engines.trial import prove
from inference.hashes import sha256_of
from inference.model_files import Wanted, fetch, is_verified, of_entry
from inference.releases import Model, Release
from inference.sources import (
    SHA256,
    SLUG,
    LocalFile,
    ModelFileError,
    Source,
    file_name,
    parse,
    parse_outside,
)


@dataclass(frozen=True, slots=True)
class Pull:
    source: Source
    slug: str
    title: str
    sha256: str
    context_tokens: int | None
    path: Path
    public_only: bool = False
    is_live: bool = True

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
        public_only: bool = False,
        is_live: bool = True,
        **_: object,
    ) -> "Pull":
        """Raises ModelFileError unless it is said where from, what as, and how it is known.

        public_only: for somebody who may not reach or learn of anything else. is_live: whether
        people get the first release of a model at once.
        """
        found = parse_outside(source) if public_only else parse(source)
        if not SLUG.fullmatch(name or ""):
            raise ModelFileError("Give the model a name: --name my-model")
        if sha256 and not SHA256.fullmatch(sha256):
            raise ModelFileError("--sha256 takes 64 hexadecimal digits.")
        if not (sha256 or trust_first_use or isinstance(found, LocalFile)):
            raise ModelFileError(
                "Say what the file must be: --sha256 HEX, as its publisher states it. "
                "Or take what comes and record its hash: --trust-first-use"
            )
        path = Path(settings.MODELS_DIR) / file_name(found)
        slug, digest = name or "", sha256.lower()
        return cls(found, slug, title or slug, digest, context, path, public_only, is_live)

    def run(self, download: Advance, unpack: Advance, by: By) -> Release:
        """Raises ModelFileError, and EngineError for a file that is broken."""
        return self.record(self.bring(download, unpack), by)

    def bring(self, download: Advance, unpack: Advance) -> str:
        """Have the file in its place; returns its SHA-256. Raises as `run` does."""
        if self.public_only and self._is_anothers_name():
            raise ModelFileError(f"Another file is known as {self.path.name}; this one may not be.")
        return self._file_in_place() or self._fetch(download, unpack)

    def record(self, sha256: str, by: By) -> Release:
        """The release of a file that is in its place."""
        model = Model.named(self.slug, title=self.title)
        return model.add_release(
            self.path, by, sha256=sha256, context_tokens=self.context_tokens, is_live=self.is_live
        )

    def _file_in_place(self) -> str:
        """The hash of a file that need not be fetched; a file of another kind stays as it is."""
        if not self.path.exists():
            return ""
        found = sha256_of(self.path)
        if self._is_damaged(found):
            return ""
        if found != self.sha256 and self.public_only:
            raise ModelFileError(f"Another file {self.path.name} is here already.")
        if found != self.sha256 and self.source != LocalFile(self.path.resolve()):
            raise ModelFileError(
                f"A file {self.path.name} is here already. If it is the same, say so with "
                f"--sha256 {found}; else rename one of them."
            )
        if self.sha256 and found != self.sha256:
            raise ModelFileError(f"{self.path.name} is not that file: its SHA-256 is {found}.")
        _try(self.path, found)
        return found

    def _is_damaged(self, found: str) -> bool:
        """Whether it is no longer the file of a release, which is wanted again."""
        releases = Release.objects.filter(weights_file=self.path.name)
        known = set(releases.values_list("weights_sha256", flat=True))
        return self.sha256 in known and found not in known

    def _is_anothers_name(self) -> bool:
        """Of a file that is away, maybe: it is not to be found replaced when it is looked for."""
        releases = Release.objects.filter(weights_file=self.path.name)
        entries = (e.file_sha256 for e in CATALOGUE.values() if e.file_name == self.path.name)
        known = {*releases.values_list("weights_sha256", flat=True), *entries}
        return bool(known) and known != {self.sha256}

    def _fetch(self, download: Advance, unpack: Advance) -> str:
        return fetch(self.source, Wanted(self.path, self.sha256), download, unpack, _try)


def bring_known(entry: Entry, download: Advance, unpack: Advance) -> None:
    """Have the file of what the catalogue has in its place, unless it is there already."""
    wanted = of_entry(entry, settings.MODELS_DIR)
    if entry.source and not is_verified(wanted):
        fetch(entry.source, wanted, download, unpack)


def _try(path: Path, sha256: str) -> None:
    prove(path, sha256, Path(settings.DATA_DIR) / "trials")
