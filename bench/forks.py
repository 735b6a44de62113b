"""Workers that are forks of bench/forkserver.py, for tests and measurements that kill many."""

import json
import subprocess
import sys
from uuid import UUID, uuid4

from bench.site import ROOT


class Forks:
    """`environment`: of a site that has a database; MODEL says which engine is loaded."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "bench.forkserver"], cwd=ROOT, env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._answer() == "ready"

    def start(self, release: str = "", failpoint: str = "", lanes: str = "") -> tuple[int, UUID]:
        """The process and the boot id of a new worker; `lanes`: all, when none is named."""
        boot_id = uuid4()
        asked = {"failpoint": failpoint, "release": release, "lanes": lanes}
        return self._order(boot_id=str(boot_id), **asked), boot_id

    def bury(self, boot_id: UUID) -> None:
        """It has died: what it held is free. Returns at once."""
        self._order(dead=str(boot_id))

    def close(self) -> None:
        """The workers are to be ended before."""
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(10)

    def _order(self, **order: str) -> int:
        assert self._server.stdin is not None
        print(json.dumps(order), file=self._server.stdin, flush=True)
        return int(self._answer())

    def _answer(self) -> str:
        assert self._server.stdout is not None
        return self._server.stdout.readline().strip()
