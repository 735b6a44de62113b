"""A process ends with whoever started it."""

import os
import signal
import subprocess
import sys

import pytest
from django.conf import settings


def test_a_process_on_a_lifeline_that_is_not_waited_for_by_others_ends_with_it_and_not_before():
    reading, writing = os.pipe()
    os.set_blocking(reading, False)  # as a worker does, for all that share it
    code = "import time; from deploy import lifeline; lifeline.follow(); time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=settings.BASE_DIR, pass_fds=(reading,),
        env={**os.environ, "CHATSITE_LIFELINE": str(reading)}, stderr=subprocess.PIPE,
    )  # fmt: skip
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    os.close(writing)
    assert process.communicate(timeout=10)[1] == b""
    assert process.returncode == -signal.SIGTERM
    os.close(reading)
