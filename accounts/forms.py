"""Django's own account forms, with the few rules of this site."""

from django.contrib.auth.forms import BaseUserCreationForm, UserCreationForm
from django.core.exceptions import ValidationError

from accounts.models import User

GUEST_PREFIX = "guest-"


class SignUpForm(UserCreationForm):
    """A name and a password, twice."""

    class Meta(BaseUserCreationForm.Meta):
        model = User
        fields = ("username",)

    def clean_username(self) -> str:
        username = super().clean_username() or ""
        if username.casefold().startswith(GUEST_PREFIX):
            raise ValidationError("Names that start with “guest-” are for guests.", code="reserved")
        return str(username)
