"""How often somebody may do a thing: fixed windows, counted in the cache."""

import ipaddress
from http import HTTPStatus

from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django_ratelimit.core import get_usage


def limited(request: HttpRequest, name: str, account: str = "") -> int | None:
    """Count one use of `name` (a key of settings.RATE_LIMITS); None when it is allowed.

    Otherwise the seconds to wait. Counted by account when somebody is logged in, by client
    address when not. `account` narrows the latter to one account name, for log-in.
    """
    rate = settings.RATE_LIMITS[name]
    who = _who(request, account)
    usage = get_usage(request, group=name, key=lambda *_: who, rate=rate, increment=True)
    if usage is None or not usage["should_limit"]:
        return None
    return max(1, int(usage["time_left"]))


def _who(request: HttpRequest, account: str) -> str:
    address = client_network(request)
    if account:
        return f"name:{account.casefold()}:{address}"
    user = getattr(request, "user", None)
    if user is not None and user.is_authenticated:
        return f"user:{user.pk}"
    return f"address:{address}"


def client_network(request: HttpRequest) -> str:
    """The client's address; for IPv6 the /64 that one subscriber has."""
    address = client_address(request)
    parsed = _parse(address)
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.ip_network(f"{address}/64", strict=False).network_address)
    return address


def client_address(request: HttpRequest) -> str:
    """Who connected: the peer, or the right-most hop that is not one of our own proxies.

    Anybody can write X-Forwarded-For, so a hop counts only if a proxy named in
    settings.TRUSTED_PROXIES vouches for it. "unix" there stands for a Unix socket.
    """
    address = request.META.get("REMOTE_ADDR") or "unix"
    for hop in reversed(request.META.get("HTTP_X_FORWARDED_FOR", "").split(",")):
        if not _is_trusted(address) or _parse(hop.strip()) is None:
            break
        address = hop.strip()
    return str(address)


def _is_trusted(address: str) -> bool:
    if address in settings.TRUSTED_PROXIES:
        return True
    parsed = _parse(address)
    networks = (_network(entry) for entry in settings.TRUSTED_PROXIES)
    return parsed is not None and any(network and parsed in network for network in networks)


def _parse(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return None


def _network(entry: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return None


def wait_in_words(seconds: int) -> str:
    """45 → "45 seconds", 61 → "2 minutes": rounded up, so that waiting this long is enough."""
    for unit, length in (("hour", 3600), ("minute", 60), ("second", 1)):
        if seconds > length or length == 1:
            count = -(-seconds // length)
            return f"{count} {unit}{'' if count == 1 else 's'}"
    raise AssertionError("unreachable")


def wants_json(request: HttpRequest) -> bool:
    return request.get_preferred_type(["text/html", "application/json"]) == "application/json"


def too_many(request: HttpRequest, seconds: int) -> HttpResponse:
    """The 429 answer in the shape the client asked for, with the wait in words."""
    sentence = f"That was too often. Please wait {wait_in_words(seconds)} and try again."
    status = HTTPStatus.TOO_MANY_REQUESTS
    response: HttpResponse
    if wants_json(request):
        error = {"code": "rate_limited", "message": sentence, "retry_after": seconds}
        response = JsonResponse({"error": error}, status=status)
    else:
        context = {"retry_after": seconds, "wait": wait_in_words(seconds), "message": sentence}
        response = render(request, "429.html", context, status=status)
    response["Retry-After"] = str(seconds)
    return response
