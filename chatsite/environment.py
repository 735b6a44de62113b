"""Settings out of environment variables: each is checked, and refused in one sentence."""

import os
import re
import zoneinfo
from typing import Any, NoReturn

SWITCHES = {"1": True, "true": True, "yes": True, "on": True}
SWITCHES |= {"": False, "0": False, "false": False, "no": False, "off": False}
RATE = re.compile(r"[0-9]+/[0-9]*[smhd]")
REDIS = re.compile(r"(rediss?|unix)://\S+")
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


def env_list(name: str, default: str = "") -> list[str]:
    return [part.strip() for part in os.environ.get(name, default).split(",") if part.strip()]


def env_bool(name: str, default: bool = False) -> bool:
    found = SWITCHES.get(os.environ.get(name, "1" if default else "0").strip().lower())
    return refuse(name, "on or off") if found is None else found


def env_int(name: str, default: int, least: int = 0, most: int = 2**31) -> int:
    text = os.environ.get(name) or str(default)
    if not re.fullmatch(r"-?[0-9]{1,12}", text):
        return refuse(name, "a whole number")
    number = int(text)
    return number if least <= number <= most else refuse(name, _between(least, most))


def _between(least: int, most: int) -> str:
    return f"{least} or more" if most == 2**31 else f"between {least} and {most}"


def env_float(name: str, default: float) -> float:
    """Not negative and not endless."""
    try:
        number = float(os.environ.get(name) or default)
    except ValueError:
        return refuse(name, "a number")
    return number if 0 <= number < float("inf") else refuse(name, "0 or more")


def env_rate(name: str, default: str) -> str:
    rate = os.environ.get(name) or default
    return rate if RATE.fullmatch(rate) else refuse(name, "a rate such as 30/m or 10/15m")


def env_level(name: str, default: str) -> str:
    level = (os.environ.get(name) or default).upper()
    return level if level in LEVELS else refuse(name, f"one of {', '.join(LEVELS)}")


def env_time_zone(name: str, default: str) -> str:
    zone = os.environ.get(name) or default
    try:
        zoneinfo.ZoneInfo(zone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        return refuse(name, "a time zone such as UTC or Europe/Paris")
    return zone


def env_database(name: str, default: str) -> dict[str, Any]:
    import dj_database_url  # not above: the installer reads this module before it is there

    try:
        found = {**dj_database_url.parse(os.environ.get(name) or default)}
    except (ValueError, dj_database_url.ParseError, dj_database_url.UnknownSchemeError):
        found = {}
    kind = str(found.get("ENGINE", "")).rpartition(".")[2]
    if kind not in ("sqlite3", "postgresql"):
        # Not repeated: there may be a password in it.
        raise SystemExit(f"{name} must be postgresql://user:password@host/name. {SEE}")
    return found


def env_redis(name: str) -> str:
    """Empty when there is none."""
    url = os.environ.get(name, "")
    if url and not REDIS.fullmatch(url):
        # Not repeated: there may be a password in it.
        raise SystemExit(f"{name} must be redis://:password@host:6379/0. {SEE}")
    return url


SEE = "See docs/settings.md."


def refuse(name: str, what: str) -> NoReturn:
    raise SystemExit(f"{name} must be {what}, not “{os.environ.get(name)}”. {SEE}")
