#!/usr/bin/env python
"""Django's command-line entry point."""

import os
import sys


def main() -> None:
    # Set before any library can start OpenMP threads: spinning threads on a shared
    # machine slow token generation by an order of magnitude (docs/architecture.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chatsite.settings")
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
