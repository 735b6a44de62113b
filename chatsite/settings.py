"""Every setting, read from the environment with safe defaults; documented in docs/settings.md."""

import os
import sys
from pathlib import Path
from typing import Any

from csp.constants import NONCE, NONE, SELF

from chatsite.environment import (
    env_bool,
    env_database,
    env_float,
    env_int,
    env_level,
    env_list,
    env_rate,
    env_redis,
    env_time_zone,
)
from chatsite.postgresql import room
from chatsite.secret import load_or_create_secret

BASE_DIR = Path(__file__).resolve().parent.parent


def data_folder() -> Path:
    folder = Path(os.environ.get("DATA_DIR", BASE_DIR / "data")).resolve()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_uid == os.getuid():
            folder.chmod(0o700)  # sessions and chats are in there
    except OSError as error:
        raise unusable(folder, error) from None
    return folder


def unusable(folder: Path, error: OSError) -> SystemExit:
    return SystemExit(
        f"The data folder {folder} cannot be used ({error.strerror}). "
        "Change its owner, or name another one in DATA_DIR."
    )


def secret_key() -> str:
    """The one given, else this installation's own."""
    try:
        return os.environ.get("SECRET_KEY") or load_or_create_secret(DATA_DIR / "secret_key")
    except OSError as error:
        raise unusable(DATA_DIR, error) from None


DATA_DIR = data_folder()
HOST = os.environ.get("HOST", "127.0.0.1")
PORT = env_int("PORT", 8000, 1, 65535)
DEBUG = env_bool("DEBUG")
SECRET_KEY = secret_key()
ALLOWED_HOSTS = env_list("ALLOWED_HOSTS", f"localhost,127.0.0.1,[::1],{HOST}")
CSRF_TRUSTED_ORIGINS = env_list("CSRF_TRUSTED_ORIGINS")
HTTPS = env_bool("HTTPS")

# --- models and workers -------------------------------------------------------------------
MODEL = os.environ.get("MODEL", "smollm2-135m-instruct")
EMBEDDING_MODEL = os.environ.get("EMBEDDING_MODEL", "wordllama-256")
MODELS_DIR = Path(os.environ.get("MODELS_DIR", DATA_DIR / "models")).resolve()
CONTEXT_TOKENS = env_int("CONTEXT_TOKENS", 4096, 256)
WORKER_SLOTS = env_int("WORKER_SLOTS", 8, 1, 256)
WORKER_THREADS = env_int("WORKER_THREADS", 0, 0, 512)  # 0: measured at start
REPRODUCIBLE = env_bool("REPRODUCIBLE")
MAX_ANSWER_TOKENS = env_int("MAX_ANSWER_TOKENS", 1024, 1)
MAX_QUEUED = env_int("MAX_QUEUED", 500)  # for one release; 0: no limit
MAX_SOCKETS_EACH = env_int("MAX_SOCKETS_EACH", 50)  # of one person in one process; 0: no limit
MAX_RUNS_EACH = env_int("MAX_RUNS_EACH", 10)  # of one person, unless their tier says; 0: no limit
DEFAULT_RETRY_SECONDS = 30  # when nothing is known of how long answers take
SUMMARISE_LEFT_OUT = env_bool("SUMMARISE_LEFT_OUT")
MAX_MESSAGE_CHARACTERS = env_int("MAX_MESSAGE_CHARACTERS", 32000, 1, 500_000)
GENERATION_FINISHED = "chats.answers.settle"  # called inside the finishing transaction
LOG_RETENTION_SECONDS = env_int("LOG_RETENTION_SECONDS", 900, 60)
DELETED_CHATS_DAYS = env_int("DELETED_CHATS_DAYS", 30)
DRAIN_SECONDS = env_float("DRAIN_SECONDS", 5)
SIMULATED_TOKENS_PER_SECOND = env_float("SIMULATED_TOKENS_PER_SECOND", 50)
SIMULATED_LOAD_SECONDS = env_float("SIMULATED_LOAD_SECONDS", 0)
ADMIN_SEES_MESSAGES = env_bool("ADMIN_SEES_MESSAGES")

# --- limits for form views (django-ratelimit) ---------------------------------------------
RATE_LIMITS = {
    "login": env_rate("RATE_LIMIT_LOGIN", "10/15m"),  # per account name and address
    "login_address": env_rate("RATE_LIMIT_LOGIN_ADDRESS", "100/15m"),
    "signup": env_rate("RATE_LIMIT_SIGNUP", "10/h"),
    "send": env_rate("RATE_LIMIT_SEND", "30/m"),
    "change": env_rate("RATE_LIMIT_CHANGE", "300/m"),  # titles, branches, deletions
    "send_address": env_rate("RATE_LIMIT_SEND_ADDRESS", "120/m"),  # guests together
}
TRUSTED_PROXIES = env_list("TRUSTED_PROXIES")  # addresses, networks, "unix"

# It makes runserver speak ASGI. Elsewhere it would bring Twisted for nothing: a quarter of a second
# and megabytes in every process.
DAPHNE = ["daphne"] if sys.argv[1:2] == ["runserver"] else []
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    *DAPHNE,  # before staticfiles, which has a runserver too
    "django.contrib.staticfiles",
    "channels",
    "csp",
    "chatsite",
    "accounts",
    "inference",
    "chats",
]

MIDDLEWARE = [
    "chatsite.encoding.utf8_only",
    "chatsite.encoding.whole_only",
    "django.middleware.security.SecurityMiddleware",
    "csp.middleware.CSPMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "chatsite.away.ReadAgain",
]

ROOT_URLCONF = "chatsite.urls"
WSGI_APPLICATION = "chatsite.wsgi.application"
ASGI_APPLICATION = "chatsite.asgi.application"
AUTH_USER_MODEL = "accounts.User"
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "home"
LOGOUT_REDIRECT_URL = "home"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

TEMPLATES: list[dict[str, Any]] = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "csp.context_processors.nonce",
            ],
        },
    },
]


def database() -> dict[str, Any]:
    """SQLite in DATA_DIR unless DATABASE_URL names another database."""
    config = env_database("DATABASE_URL", f"sqlite:///{DATA_DIR / 'chatsite.sqlite3'}")
    if config["ENGINE"].endswith("sqlite3"):
        config["OPTIONS"] = {
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
            "init_command": (
                "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;"
                "PRAGMA foreign_keys=ON; PRAGMA cache_size=-8000"
            ),
        }
        config["CONN_MAX_AGE"] = None  # the threads that serve pages last as long as the process
        config["TEST"] = {"NAME": DATA_DIR / "test.sqlite3"}  # a file: tests use threads
    else:
        options = config.get("OPTIONS", {})  # of the URL: host=/a/socket, sslmode=…
        # A server that is away is noticed soon, and again when it is back.
        alive = {"connect_timeout": 3, "tcp_user_timeout": 10_000, "keepalives_idle": 10}
        pool = {"max_size": env_int("DATABASE_POOL", 12, 11, 100)}
        limits = room.limits(options.pop("options", ""))
        named = {"application_name": room.NAME}
        config["OPTIONS"] = {**named, **alive, **options, **limits, "pool": pool}
        config["ENGINE"] = "chatsite.postgresql"
    return config


DATABASES = {"default": database()}
REDIS_URL = env_redis("REDIS_URL")
METRICS_TOKEN = os.environ.get("METRICS_TOKEN", "")
REDIS_PREFIX = os.environ.get("REDIS_PREFIX", "chatsite")
SESSION_ENGINE = "accounts.cached_sessions" if REDIS_URL else "accounts.sessions"
IN_THIS_PROCESS: dict[str, Any] = {
    "BACKEND": "django.core.cache.backends.locmem.LocMemCache",
    # Limits are counted here; by default 300 other keys would push a count out.
    "OPTIONS": {"MAX_ENTRIES": 200_000},
}
SHARED: dict[str, Any] = {
    "BACKEND": "chatsite.caches.SharedCache",
    "LOCATION": REDIS_URL,
    "KEY_PREFIX": f"{REDIS_PREFIX}:cache",
}
CACHES = {"default": SHARED if REDIS_URL else IN_THIS_PROCESS}

PASSWORD_HASHERS = [
    "accounts.hashers.Argon2",
    "django.contrib.auth.hashers.PBKDF2PasswordHasher",
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]

LANGUAGE_CODE = "en"
TIME_ZONE = env_time_zone("TIME_ZONE", "UTC")
USE_TZ = True

STATIC_URL = "/static/"
STATIC_ROOT = Path(os.environ.get("STATIC_ROOT", BASE_DIR / "static-collected")).resolve()
STATICFILES_DIRS = [BASE_DIR / "static"]
STATICFILES_FINDERS = [
    "django.contrib.staticfiles.finders.FileSystemFinder",
    "django.contrib.staticfiles.finders.AppDirectoriesFinder",
    "chatsite.finders.NpmFinder",
]
STATIC_HASHED = env_bool("STATIC_HASHED", not DEBUG)
_STATIC_STORAGE = (
    "chatsite.storage.HashedStaticFilesStorage"
    if STATIC_HASHED
    else "django.contrib.staticfiles.storage.StaticFilesStorage"
)
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": _STATIC_STORAGE},
}
MEDIA_ROOT = DATA_DIR / "media"

# --- security: docs/settings.md says what each line is against ----------------------------
SESSION_COOKIE_AGE = 60 * 60 * 24 * 90  # a guest's only way back to their chats
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = HTTPS
SESSION_COOKIE_NAME = "__Host-session" if HTTPS else "session"
CSRF_COOKIE_NAME = "__Host-csrf" if HTTPS else "csrf"
CSRF_COOKIE_HTTPONLY = True
CSRF_FAILURE_VIEW = "chatsite.errors.csrf_failure"
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if TRUSTED_PROXIES else None
SECURE_SSL_REDIRECT = HTTPS
SECURE_REDIRECT_EXEMPT = [r"^livez$", r"^readyz$", r"^metrics$"]
SECURE_HSTS_SECONDS = 60 * 60 * 24 * 30 if HTTPS else 0
SECURE_REFERRER_POLICY = (
    "same-origin"  # "no-referrer" makes browsers post forms with `Origin: null`
)
SECURE_CROSS_ORIGIN_OPENER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
DATA_UPLOAD_MAX_MEMORY_SIZE = 2 * 1024 * 1024
# Whether every subdomain speaks HTTPS, and whether browsers may ship that as a fact, is for
# the owner of the domain to say, not for one site under it.
SILENCED_SYSTEM_CHECKS = ["security.W005", "security.W021"]

CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [NONE],
        "script-src": [SELF, NONCE],
        "style-src": [SELF],
        "img-src": [SELF, "data:"],
        "font-src": [SELF],
        "connect-src": [SELF],  # in today's browsers this covers the WebSocket of the same host
        "manifest-src": [SELF],
        "form-action": [SELF],
        "frame-ancestors": [NONE],
        "base-uri": [NONE],
        "object-src": [NONE],
    },
}

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "line": {"()": "chatsite.logs.OneLine", "format": "%(asctime)s %(levelname)s %(message)s"},
    },
    "filters": {
        "now_and_then": {"()": "chatsite.logs.NowAndThen", "seconds": 30},
        "on_purpose": {"()": "chatsite.logs.OnPurpose"},
    },
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": "WARNING"},
    "loggers": {
        name: {"level": env_level("LOG_LEVEL", "INFO")}
        for name in ("chatsite", "accounts", "inference", "chats")
    }
    | {"django": {"handlers": [], "level": "WARNING", "propagate": True}}
    | {"django.request": {"filters": ["on_purpose"]}}
    | {"psycopg.pool": {"filters": ["now_and_then"]}},  # it tells each attempt of each thread
}
