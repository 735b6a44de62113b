"""Starts real worker processes quickly: Django is loaded once, each worker is a fork of this.

Lines on standard input: {"boot_id": …, "failpoint": …}; the answer is the new process's id.
The workers are killed by the tests as any process is; only the second it takes to import
Django is saved, once per kill.
"""

import asyncio
import json
import os
import signal
import sys
import traceback
from uuid import UUID


def main() -> None:
    import django

    django.setup()
    from django.conf import settings

    settings.GENERATION_FINISHED = os.environ["TEST_GENERATION_FINISHED"]
    if os.environ["MODEL"] != "simulated":
        import inference.engines.llama_cpp
    import inference.worker  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the dead are not waited for
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            work(order)
        print(pid, flush=True)


def work(order: dict[str, str]) -> None:
    from inference import failpoints
    from inference.models import Release
    from inference.worker import WorkerProcess

    code = 1
    try:
        os.close(0)
        failpoints.arm(order["failpoint"])
        release = Release.objects.get(pk=order["release"])
        asyncio.run(WorkerProcess(release, UUID(order["boot_id"])).run())
        code = 0
    except BaseException:  # a fork must never fall back into the server's loop
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()
