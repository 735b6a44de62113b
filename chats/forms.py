"""What a send must look like; each refusal is a sentence and a code."""

import unicodedata
from typing import Any
from urllib.parse import unquote_to_bytes
from uuid import UUID, uuid4

from django import forms
from django.conf import settings
from django.core.exceptions import ValidationError
from django.http import HttpRequest

from chats.models import Chat
from chats.refusals import Refusal

BAD_TEXT = "The message contains characters that are not valid text. Remove them and try again."
REORDERING = set("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
BAD_ID = {"invalid": "The form carried an id that is none. Load the page again and retry."}


def clean_text(text: str) -> str:
    """The text as it is stored. Raises ValidationError with code blank, too_long or bad_text."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").rstrip().lstrip("\n")
    limit = settings.MAX_MESSAGE_CHARACTERS
    if len(text) > limit:
        sentence = f"The message has {len(text):,} characters; {limit:,} are allowed."
        raise ValidationError(sentence, code="too_long")
    if any(c == "\0" or unicodedata.category(c) == "Cs" for c in text):
        raise ValidationError(BAD_TEXT, code="bad_text")
    if not any(c.isprintable() and not c.isspace() for c in text):
        raise ValidationError("Write a message first.", code="blank")
    return text


class TextField(forms.Field):
    """Not a CharField: that would strip the text and refuse NUL in its own words."""

    def clean(self, value: Any) -> str:
        return clean_text(str(value or ""))


class IdField(forms.UUIDField):
    def __init__(self) -> None:
        super().__init__(required=False, error_messages=BAD_ID)


class ActionForm(forms.Form):
    """A write that only needs to be known again when it is repeated."""

    client_id = IdField()

    def clean_client_id(self) -> UUID:
        return self.cleaned_data["client_id"] or uuid4()


class TextForm(forms.Form):
    text = TextField()


class MessageForm(ActionForm, TextForm):
    parent = IdField()
    edits = IdField()


class BranchForm(forms.Form):
    message = forms.UUIDField(error_messages={**BAD_ID, "required": BAD_ID["invalid"]})


class TitleForm(forms.ModelForm):
    class Meta:
        model = Chat
        fields = ("title",)

    def clean_title(self) -> str:
        title = " ".join(self.cleaned_data["title"].split())
        if not any(c.isprintable() for c in title):
            raise ValidationError("Write a title first.", code="blank")
        if any(unicodedata.category(c) in {"Cs", "Cc"} or c in REORDERING for c in title):
            raise ValidationError(BAD_TEXT, code="bad_text")
        return title


CODES = {"max_length": "too_long", "invalid": "bad_id", "null_characters_not_allowed": "bad_text"}


def validated(form_class: type[forms.BaseForm], request: HttpRequest) -> dict[str, Any]:
    """The cleaned data of a posted form, or its first error as a Refusal."""
    if _is_broken_text(request):
        raise Refusal(BAD_TEXT, code="bad_text")
    form = form_class(request.POST)
    if form.is_valid():
        return form.cleaned_data
    error = next(iter(form.errors.as_data().values()))[0]
    code = CODES.get(error.code or "", error.code or "blank")
    raise Refusal(error.messages[0], code="bad_id" if code == "required" else code)


def _is_broken_text(request: HttpRequest) -> bool:
    """Whether the form is not UTF-8: Django would put replacement characters there silently."""
    if request.content_type != "application/x-www-form-urlencoded":
        return False
    try:
        unquote_to_bytes(request.body).decode()
    except UnicodeDecodeError:
        return True
    return False
