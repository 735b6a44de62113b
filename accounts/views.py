"""Sign up, log in, log out, change the password, and who am I."""

import unicodedata
from urllib.parse import urlencode

from django.conf import settings
from django.contrib import messages
from django.contrib.auth import login, logout, update_session_auth_hash
from django.core.exceptions import PermissionDenied
from django.db import IntegrityError, transaction
from django.forms import BaseForm
from django.http import HttpRequest, HttpResponse
from django.middleware.csrf import rotate_token
from django.shortcuts import redirect, render, resolve_url
from django.urls import reverse
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from accounts.forms import LogInForm, NewPasswordForm, SignUpForm, focus_first_problem
from accounts.guests import BACKEND, hand_over
from accounts.limits import limited, too_many
from accounts.models import User

require_form_methods = require_http_methods(["GET", "HEAD", "POST"])


@require_GET
@never_cache
def account(request: HttpRequest) -> HttpResponse:
    """Who am I, and where to go from here."""
    return render(request, "accounts/account.html")


@require_form_methods
@never_cache
@sensitive_post_parameters("password")
def log_in(request: HttpRequest) -> HttpResponse:
    """Log in; what a guest has moves to the account."""
    if _is_member(request):
        return redirect(_next(request))
    form = LogInForm(request, data=request.POST or None)
    if request.method != "POST":
        return _form_page(request, "accounts/login.html", form)
    wait = _log_in_wait(request)
    if wait:
        return too_many(request, wait)
    if not form.is_valid():
        return _form_page(request, "accounts/login.html", form)
    _log_in_as(request, form.get_user())
    return redirect(_next(request))


@never_cache
def admin_log_in(request: HttpRequest) -> HttpResponse:
    """Staff log in where everybody does; somebody logged in who is not staff is told so."""
    if request.user.is_active and getattr(request.user, "is_staff", False):
        return redirect("admin:index")
    if _is_member(request):
        raise PermissionDenied
    return redirect(f"{reverse('login')}?{urlencode({'next': reverse('admin:index')})}")


def _log_in_wait(request: HttpRequest) -> int | None:
    """Few tries for one name from one address, and more, but not endless, for one address."""
    typed = request.POST.get("username", "")
    name = unicodedata.normalize("NFKC", typed).strip()[:150]  # as the form reads it
    return limited(request, "login", account=name or "-") or limited(
        request, "login_address", account="*"
    )


def _log_in_as(request: HttpRequest, user: User) -> None:
    guest = request.user
    with transaction.atomic():
        if isinstance(guest, User) and guest.is_guest:
            hand_over(guest, user)
        login(request, user, backend=BACKEND)


@require_form_methods
@never_cache
@sensitive_post_parameters("password1", "password2")
def sign_up(request: HttpRequest) -> HttpResponse:
    """Make an account; a guest becomes it in place, so that every chat stays theirs."""
    if _is_member(request):
        return redirect(_next(request))
    form = SignUpForm(request.POST or None)
    if request.method != "POST":
        return _form_page(request, "accounts/signup.html", form)
    wait = limited(request, "signup", account="*")  # a new guest is no new person
    if wait:
        return too_many(request, wait)
    if not form.is_valid() or not (user := _create_member(request, form)):
        return _form_page(request, "accounts/signup.html", form)
    login(request, user, backend=BACKEND)
    return redirect(_next(request))


def _create_member(request: HttpRequest, form: SignUpForm) -> User | None:
    """None when somebody else took the name a moment ago; the form then says so."""
    guest = User.objects.filter(username=request.user.get_username()).first() or User()
    try:
        with transaction.atomic():
            data = form.cleaned_data
            return guest.become_member(data["username"], data["password1"])
    except IntegrityError:
        form.add_error("username", form.instance.unique_error_message(User, ("username",)))
        return None


@require_POST
def log_out(request: HttpRequest) -> HttpResponse:
    """End the session. The CSRF secret goes too: the next person here starts afresh."""
    logout(request)
    rotate_token(request)
    return redirect(settings.LOGOUT_REDIRECT_URL)


@require_form_methods
@never_cache
@sensitive_post_parameters()
def password(request: HttpRequest) -> HttpResponse:
    """Change the password; this session stays, every other one of the account ends."""
    user = request.user
    if not isinstance(user, User) or user.is_guest:
        return redirect("login")
    form = NewPasswordForm(user, request.POST or None)
    if request.method != "POST":
        return _form_page(request, "accounts/password.html", form)
    wait = limited(request, "login")
    if wait:
        return too_many(request, wait)
    if not form.is_valid():
        return _form_page(request, "accounts/password.html", form)
    form.save()
    update_session_auth_hash(request, user)
    messages.success(request, "Your password is changed. Other sessions are logged out.")
    return redirect("account")


def _is_member(request: HttpRequest) -> bool:
    return isinstance(request.user, User) and not request.user.is_guest


def _form_page(request: HttpRequest, template: str, form: BaseForm) -> HttpResponse:
    focus_first_problem(form)
    return render(request, template, {"form": form, "next": _next(request, default="")})


def _next(request: HttpRequest, default: str = "home") -> str:
    """Where to go afterwards: a path of this site named by `next`, or the default."""
    target = request.POST.get("next") or request.GET.get("next") or ""
    allowed = url_has_allowed_host_and_scheme(
        target, allowed_hosts={request.get_host()}, require_https=request.is_secure()
    )
    if allowed:
        return target
    return resolve_url(default) if default else ""
