"""manage.py generate "prompt": one answer on the terminal, token by token, from this process."""

import asyncio
import secrets
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from tqdm import tqdm

from inference.engines.base import Engine, EngineError, Request, Sampling, Turn
from inference.management.commands.worker import served_release
from inference.models import Release
from inference.worker import build_engine


class Command(BaseCommand):
    help = "Loads the default model and writes its answer to the prompt."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("prompt")
        parser.add_argument("--max-tokens", type=int, default=256)
        parser.add_argument("--temperature", type=float)
        parser.add_argument("--seed", type=int, help="The same seed gives the same answer")

    def handle(self, *args: Any, **options: Any) -> None:
        release = served_release()
        try:
            request = self._request(release, options)
            asyncio.run(self._write(build_engine(release), request))
        except EngineError as error:
            raise CommandError(str(error)) from error

    def _request(self, release: Release, options: dict[str, Any]) -> Request:
        given = {name: options[name] for name in ("max_tokens", "temperature", "seed")}
        given = {name: value for name, value in given.items() if value is not None}
        drawn = {"seed": secrets.randbits(48)}
        sampling = Sampling.from_parameters({**drawn, **release.parameters, **given})
        return Request(turns=(Turn("user", options["prompt"]),), sampling=sampling)

    async def _write(self, engine: Engine, request: Request) -> None:
        with tqdm(total=100, desc="Loading the model", unit="%", leave=False) as bar:
            await engine.start(lambda percent: bar.update(percent - bar.n))
        try:
            async for delta in engine.generate(request):
                self.stdout.write(delta.text, ending="")
                self.stdout.flush()
            self.stdout.write("")
        finally:
            await engine.stop()
