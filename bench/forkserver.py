"""Starts real worker processes quickly: Django is loaded once, each worker is a fork of this.

Lines on standard input: {"boot_id": …, "failpoint": …, "lanes": … (all, if empty), "release": …
(what people get, if empty)}, or {"dead": boot_id} to do what a supervisor does when a worker has
died; the answer is the new process's id. The workers are killed as any process is; only the
second it takes to import Django is saved, once per kill.
"""

import asyncio
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from uuid import UUID

Order = dict[str, str]


def main() -> None:
    import django

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chatsite.settings")
    django.setup()
    from django.conf import settings

    if finished := os.environ.get("TEST_GENERATION_FINISHED"):
        settings.GENERATION_FINISHED = finished
    if os.environ["MODEL"] != "simulated":
        import inference.engines.llama_cpp
    import inference.worker  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the dead are not waited for
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            follow(bury if "dead" in order else work, order)
        print(pid, flush=True)


def follow(what: Callable[[Order], None], order: Order) -> None:
    code = 1
    try:
        os.close(0)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a worker waits for children of its own
        what(order)
        code = 0
    except BaseException:  # a fork must never fall back into the server's loop
        traceback.print_exc()
    finally:
        os._exit(code)


def work(order: Order) -> None:
    from inference import failpoints
    from inference.models import Release
    from inference.wakeups import LANES
    from inference.worker import WorkerProcess

    failpoints.arm(order["failpoint"])
    wanted = order["release"]
    release = Release.objects.get(pk=wanted) if wanted else Release.objects.serving()
    assert release is not None
    lanes = order["lanes"].split(",") if order["lanes"] else tuple(LANES)
    asyncio.run(WorkerProcess(release, UUID(order["boot_id"]), lanes).run())


def bury(order: Order) -> None:
    from chatsite import children

    children.bury(UUID(order["dead"]))


if __name__ == "__main__":
    main()
