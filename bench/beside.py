"""One more process of a role beside a cluster's own, perhaps in another time."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bench.cluster import Cluster, answers
from bench.site import ROOT, free_port

Process = subprocess.Popen[bytes]
FAKETIME = next(map(str, Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), "")


def clock_set(skew: str) -> dict[str, str]:
    """The environment of a process whose clock is wrong by that: "+5m", "-1h"."""
    return {"LD_PRELOAD": FAKETIME, "FAKETIME": skew, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


@contextlib.contextmanager
def another(cluster: Cluster, *words: str, **environment: str) -> Iterator[Process]:
    """A process of a role beside the cluster's own; nobody looks after it."""
    with (cluster.folder / "another.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "deploy" / "role.py"), *words], cwd=ROOT,
            env=cluster.environment | cluster.told | environment, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def another_worker(cluster: Cluster, **environment: str) -> Iterator[Process]:
    with another(cluster, "worker", **environment) as process:
        yield process


@contextlib.contextmanager
def another_realtime(cluster: Cluster, **environment: str) -> Iterator[str]:
    """Its address, once it answers."""
    port = free_port()
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 60
    with another(cluster, "realtime", **{"PORT": str(port), **environment}):
        while not answers(url):
            assert time.monotonic() < deadline, (cluster.folder / "another.log").read_text()
            time.sleep(0.1)
        yield url
