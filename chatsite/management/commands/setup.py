"""manage.py setup: what a cluster needs once, before its processes start."""

from typing import Any

from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError

from chatsite.management.commands.serve import check_model
from chatsite.supervisor import CannotServe


class Command(BaseCommand):
    help = "Makes or renews the tables and registers the default model. May be repeated."

    def handle(self, *args: Any, **options: Any) -> None:
        call_command("migrate", interactive=False, verbosity=options["verbosity"])
        try:
            check_model()
        except CannotServe as error:
            raise CommandError(str(error)) from error
