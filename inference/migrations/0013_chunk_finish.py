from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("inference", "0012_file_job_calls"),
    ]

    operations = [
        migrations.AddField(
            model_name="chunk",
            name="finish",
            field=models.CharField(
                blank=True,
                db_default="",
                default="",
                help_text="Why the answer's text ends with this event, if it does",
                max_length=20,
            ),
        ),
    ]
