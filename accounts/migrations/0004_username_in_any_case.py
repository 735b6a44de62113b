from django.core.management.base import CommandError
from django.db import migrations, models
from django.db.models.functions import Lower


def refuse_twins(apps, schema_editor):
    """Say whose names differ only in capital letters: a person has to choose who is renamed."""
    people = apps.get_model("accounts", "User").objects.using(schema_editor.connection.alias)
    names = people.values(name=Lower("username")).annotate(count=models.Count("pk"))
    twins = list(names.filter(count__gt=1).values_list("name", flat=True)[:20])
    if twins:
        raise CommandError(
            f"Several accounts have the name {', '.join(twins)} in different letters. "
            "Rename all but one of each with the version from before, then migrate again."
        )


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0003_concurrent_runs"),
        ("auth", "0012_alter_user_first_name_max_length"),
    ]

    operations = [
        migrations.RunPython(refuse_twins, migrations.RunPython.noop, elidable=True),
        migrations.AddConstraint(
            model_name="user",
            constraint=models.UniqueConstraint(
                Lower("username"),
                name="username_in_any_case",
                violation_error_message="Somebody has this name already, in other letters.",
            ),
        ),
    ]
