"""Names that share their people between several models or releases."""

from typing import ClassVar

from django.core.exceptions import ValidationError
from django.db import models
from django.db.models import Q

from inference.releases import Model, Release


class Alias(models.Model):
    """A name people get (MODEL) that stands for one model or release for each of them."""

    slug = models.SlugField(max_length=80, unique=True)
    title = models.CharField(max_length=120)
    is_enabled = models.BooleanField(default=True)

    class Meta:
        ordering: ClassVar = ["slug"]
        verbose_name_plural = "aliases"

    def __str__(self) -> str:
        return self.slug

    def clean(self) -> None:
        if Model.objects.filter(slug=self.slug).exists():
            raise ValidationError({"slug": "A model has this name."})


class AliasArm(models.Model):
    """A share of an alias's people: those of a model's live release, or of one release."""

    alias = models.ForeignKey(Alias, on_delete=models.CASCADE, related_name="arms")
    model = models.ForeignKey(
        Model, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    release = models.ForeignKey(
        Release, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    weight = models.PositiveIntegerField(default=1, help_text="Its share, beside the other arms'")

    class Meta:
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=Q(model=None, release__isnull=False)
                | Q(model__isnull=False, release=None),
                name="an_arm_is_a_model_or_a_release",
                violation_error_message="Choose a model or a release, not both.",
            ),
            models.CheckConstraint(condition=Q(weight__gt=0), name="an_arm_has_a_weight"),
        ]

    def __str__(self) -> str:
        return f"{self.alias_id} {self.weight}"
