"""What every engine must keep, asked of the upstream engine with a real vLLM."""

from tests.contract.test_engine import *  # noqa: F403
