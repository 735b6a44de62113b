"""People without an account: made on their first send, kept by their session, handed over later."""

from datetime import timedelta
from typing import Any

from django.contrib.auth import login
from django.db import IntegrityError, models, transaction
from django.http import HttpRequest
from django.utils import timezone
from django.utils.crypto import salted_hmac

from accounts.limits import client_network
from accounts.models import User

BACKEND = "django.contrib.auth.backends.ModelBackend"
SAME_PAGE = timedelta(minutes=1)


def person(request: HttpRequest) -> User:
    """The person asking: who is logged in, or a guest made and logged in now.

    The session's 90 days start anew, once a day at most.
    """
    user = request.user
    if not isinstance(user, User):
        user = _guest_of(request)
        _log_in_quietly(request, user)
    today = timezone.now().date().isoformat()
    if request.session.get("kept_on") != today:
        request.session["kept_on"] = today
        if user.is_guest:  # the purge of guests asks when they were here; a member logs in
            User.objects.filter(pk=user.pk).update(last_login=timezone.now())
    return user


def _guest_of(request: HttpRequest) -> User:
    """One guest for all the sends that one anonymous page makes at once (a double click).

    The page's CSRF secret and the send's own client_id, which nobody else knows, tell who is
    the same. They count for a minute only: later they are no way back to a guest whose
    session is gone.
    """
    secret, client_id = request.META.get("CSRF_COOKIE"), request.POST.get("client_id")
    origin = _digest("origin", client_network(request))
    if not secret or not client_id:
        return User.objects.create_guest(origin=origin)
    name = f"guest-{_digest('page', f'{secret} {client_id}')}"
    guest = User.objects.filter(username=name).first() or _create_once(name, origin)
    is_same_page = guest.is_guest and timezone.now() - guest.date_joined < SAME_PAGE
    return guest if is_same_page and guest.is_active else User.objects.create_guest(origin=origin)


def _digest(what: str, value: str) -> str:
    return salted_hmac(f"accounts.guests.{what}", value, algorithm="sha256").hexdigest()[:32]


def _create_once(name: str, origin: str) -> User:
    try:
        with transaction.atomic():
            return User.objects.create_guest(name, origin)
    except IntegrityError:  # the other click was faster
        return User.objects.get(username=name)


def _log_in_quietly(request: HttpRequest, guest: User) -> None:
    """Log a new guest in and keep the CSRF secret, so that other open pages can still send.

    Django changes the secret at log-in because rights change; a guest gains none.
    """
    secret = request.META.get("CSRF_COOKIE")
    login(request, guest, backend=BACKEND)
    if secret:
        request.META["CSRF_COOKIE"] = secret


def hand_over(guest: User, user: User) -> None:
    """Make everything of a guest the user's, whatever apps it is in, and delete the guest.

    A row that would break one of its table's unique rules stays with the guest, who is
    then kept as well: nothing is ever lost by logging in.
    """
    with transaction.atomic():
        guest.lock()
        relations = _relations_to_user()
        for model, field in relations:
            _move_rows(model, field, guest, user)
        if not any(_rows_of(model, field, guest).exists() for model, field in relations):
            guest.delete()


def _relations_to_user() -> list[tuple[type[models.Model], str]]:
    """Every table and column that points to a person, hidden reverse relations included."""
    return [
        (relation.related_model, relation.field.name)
        for relation in User._meta.get_fields(include_hidden=True)
        if isinstance(relation, models.ManyToOneRel) and isinstance(relation.related_model, type)
    ]


def _rows_of(model: type[models.Model], field: str, owner: User) -> models.QuerySet[Any]:
    return model._base_manager.filter(**{field: owner})


def _move_rows(model: type[models.Model], field: str, guest: User, user: User) -> None:
    rows = _rows_of(model, field, guest)
    try:
        with transaction.atomic():
            rows.update(**{field: user})
    except IntegrityError:
        for pk in list(rows.values_list("pk", flat=True)):
            _move_one(rows.filter(pk=pk), field, user)


def _move_one(row: models.QuerySet[Any], field: str, user: User) -> None:
    try:
        with transaction.atomic():
            row.update(**{field: user})
    except IntegrityError:
        return
