"""The child process that runs a model's chat template. Its parent is engines/template.py.

A template is a program somebody else wrote. Inside Python nothing bounds it: a loop, a doubled
text, a wide format or a folded constant fills the memory or never ends, while it is compiled
or while it runs. So it runs here, where the kernel bounds it: a second of processor time a
message, some memory, no files, no network, no secrets in the environment. The parent starts
another one when this one dies.

Messages are JSON, each after its length in four bytes, on standard input and output:
{"source", "bos", "eos"} compiles and is answered with {}; then {"roles": […], "marks": […]} is
answered with {"text": …}. A failure is {"error": sentence}; {"refused": reason} is the
template's own raise_exception. Only the standard library and Jinja are imported, by path.
"""

import codecs
import contextlib
import json
import resource
import signal
import struct
import sys
from typing import Any, NoReturn

# What Jinja imports when it first needs it, which is too late here: no file can be opened then.
import jinja2.constants
import jinja2.debug  # noqa: F401
from jinja2 import Template, TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 1.0  # of processor time, for one message
MEMORY_BYTES = 256 << 20  # above what the process has when it starts
MAX_OUTPUT_CHARACTERS = 1_000_000
MAX_SENTENCE = 200
HEAD = struct.Struct(">I")


class Refused(Exception):
    """The template called raise_exception: the conversation is not one it can write."""


def refuse(reason: object = "") -> NoReturn:
    raise Refused(str(reason)[:MAX_SENTENCE])


class Program:
    def __init__(self, source: str, bos: str, eos: str) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        self._names = {"bos_token": bos, "eos_token": eos, "raise_exception": refuse}
        self._template: Template = environment.from_string(source)

    def text(self, roles: list[str], marks: list[str]) -> str:
        turns = zip(roles, marks, strict=True)
        messages = [{"role": role, "content": mark} for role, mark in turns]
        pieces, room = [], MAX_OUTPUT_CHARACTERS
        for piece in self._template.generate(
            messages=messages, add_generation_prompt=True, **self._names
        ):
            room -= len(piece)
            if room < 0:
                raise TemplateError("it writes too much")
            pieces.append(piece)
        return "".join(pieces)


class Session:
    def __init__(self) -> None:
        self._program: Program | None = None

    def answer(self, message: dict[str, Any]) -> dict[str, str]:
        try:
            if self._program is None:
                self._program = Program(**message)
                return {}
            return {"text": self._program.text(**message)}
        except Refused as refusal:
            return {"refused": str(refusal)}
        except (MemoryError, RecursionError):
            return {"error": "it needs too much memory"}
        except Exception as error:  # whatever a program can raise, compiled or run
            return {"error": str(error)[:MAX_SENTENCE] or type(error).__name__}


def confine() -> None:
    """From now on: no core, no new file or socket, bounded memory."""
    codecs.lookup("unicode_escape")  # literals; loaded on first use
    limit(CORE=0, FSIZE=0, NPROC=0, NOFILE=3, AS=memory_in_use() + MEMORY_BYTES)


def limit(**most: int) -> None:
    """Lower this process's resource limits for good, as far as the system has them."""
    for name, value in most.items():
        with contextlib.suppress(AttributeError, ValueError, OSError):
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))


def memory_in_use() -> int:
    try:
        with open("/proc/self/statm") as file:  # noqa: PTH123 - no more imports than needed
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 256 << 20


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which closes our input
    session, source, sink = Session(), sys.stdin.buffer, sys.stdout.buffer
    confine()
    while head := source.read(HEAD.size):
        message = json.loads(source.read(HEAD.unpack(head)[0]))
        # Processor time, not the clock's: on a loaded machine an honest template may wait long.
        # The signal's default ends the process wherever it is, inside C code too.
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        body = json.dumps(session.answer(message)).encode()
        signal.setitimer(signal.ITIMER_PROF, 0)
        sink.write(HEAD.pack(len(body)) + body)
        sink.flush()


if __name__ == "__main__":
    main()
