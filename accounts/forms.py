"""Django's own account forms, in simple words and with the few rules of this site."""

from typing import Any, ClassVar

from django.contrib.auth.forms import (
    AuthenticationForm,
    BaseUserCreationForm,
    PasswordChangeForm,
    UserCreationForm,
)
from django.core.exceptions import ValidationError
from django.forms import BaseForm

from accounts.models import User

GUEST_PREFIX = "guest-"
NAME_HELP = "Letters, digits and . _ - + @, without spaces."
HARD_TO_GUESS = "At least 8 characters. Not only digits, no common password, not your name."


class SignUpForm(UserCreationForm):
    """A name and a password, twice."""

    class Meta(BaseUserCreationForm.Meta):
        model = User
        fields = ("username",)
        help_texts: ClassVar = {"username": NAME_HELP}
        error_messages: ClassVar = {
            "username": {
                "invalid": "The name has a sign or a space that it cannot have.",
                "unique": "Somebody has this name already. Please choose another one.",
            }
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _describe(self, "password1", "password2")

    def clean_username(self) -> str:
        username = super().clean_username() or ""
        if username.casefold().startswith(GUEST_PREFIX):
            raise ValidationError("Names that start with “guest-” are for guests.", code="reserved")
        return str(username)

    def validate_password_for_user(self, user: Any) -> None:
        """The first of the two, so that a weak one is told also when the second differs."""
        super().validate_password_for_user(user, "password1")  # type: ignore[misc]


class LogInForm(AuthenticationForm):
    error_messages: ClassVar = {  # type: ignore[misc]
        **AuthenticationForm.error_messages,
        "invalid_login": "The name or the password is not right. Mind capitals in the password.",
    }


class NewPasswordForm(PasswordChangeForm):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _describe(self, "new_password1", "new_password2")


def _describe(form: BaseForm, password: str, again: str) -> None:
    form.fields[password].help_text = HARD_TO_GUESS
    form.fields[again].label = f"{form.fields[password].label} again"
    form.fields[again].help_text = ""


def focus_first_problem(form: BaseForm) -> None:
    """A log-in that failed as a whole has most likely a wrong password."""
    name = next((name for name in form.fields if name in form.errors), "password")
    if not form.errors or name not in form.fields:
        return
    for field in form.fields.values():
        field.widget.attrs.pop("autofocus", None)
    form.fields[name].widget.attrs["autofocus"] = True
