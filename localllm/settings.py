"""Every setting, from the environment or a YAML file (LOCALLLM_CONFIG); the environment wins.

Wiring only: no logic, no rows. docs/settings.md lists what a user may set.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path
from typing import Any

import yaml

if sys.platform == "linux":
    # Debian 12's SQLite has the WAL-reset corruption bug (fixed in 3.51.3); this wheel bundles a
    # newer one. All or nothing: two SQLite libraries in one process break each other's locks.
    import pysqlite3

    sys.modules["sqlite3"] = pysqlite3
    sys.modules["sqlite3.dbapi2"] = pysqlite3.dbapi2

BASE_DIR = Path(__file__).resolve().parent.parent


def _read_config() -> dict[str, Any]:
    path = os.environ.get("LOCALLLM_CONFIG")
    if not path:
        return {}
    content = yaml.safe_load(Path(path).read_text()) or {}
    if not isinstance(content, dict):
        raise SystemExit(f"{path} holds a {type(content).__name__}; expected a mapping such as 'PORT: 8000'.")
    return content


_config = _read_config()


def setting(name: str, default: str = "") -> str:
    value = os.environ.get(name, _config.get(name, default))
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


HOME = Path(setting("LOCALLLM_HOME", str(BASE_DIR / "var"))).expanduser().resolve()
HOST = setting("HOST", "127.0.0.1")
PORT = int(setting("PORT", "8000"))
IS_LOOPBACK = HOST in ("127.0.0.1", "::1", "localhost")
STARTER_MODEL = BASE_DIR / "localllm/gateway/data/starter.gguf"
MODEL = setting("LOCALLLM_MODEL")
MODEL_ROOTS = [Path(root).expanduser() for root in setting("LOCALLLM_MODEL_ROOTS").split(":") if root.strip()]
MEMORY_SHARE = float(setting("LOCALLLM_MEMORY_SHARE", "0.8"))
HF_ENDPOINT = setting("HF_ENDPOINT", "https://huggingface.co")
HF_TOKEN = setting("HF_TOKEN")
OFFLINE = setting("LOCALLLM_OFFLINE") == "1"


def _secret_key() -> str:
    """LOCALLLM_SECRET_KEY, else one made once in the data directory."""
    if key := setting("LOCALLLM_SECRET_KEY"):
        return key
    path = HOME / "secret_key"
    if not path.exists():
        HOME.mkdir(parents=True, exist_ok=True, mode=0o700)
        made = path.with_suffix(f".{os.getpid()}")
        made.touch(mode=0o600)
        made.write_text(secrets.token_urlsafe(50))
        try:
            os.link(made, path)  # two processes may start at once: the first one's key stays
        except FileExistsError:
            pass
        finally:
            made.unlink()
    return path.read_text()


SECRET_KEY = _secret_key()
DEBUG = False
# The local names always: what runs on this machine, as a health check, may use them.
ALLOWED_HOSTS = [*filter(None, setting("LOCALLLM_ALLOWED_HOSTS").split(",")), "localhost", "127.0.0.1", "[::1]"]
ROOT_URLCONF = "localllm.urls"
ASGI_APPLICATION = "localllm.asgi.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
TIME_ZONE = "UTC"
USE_I18N = False

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "channels",
    "django_htmx",
    "localllm.gateway",
    "schemas_app",
    "chat",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "localllm.gateway.static_files.StaticFilesMiddleware",
    "localllm.gateway.security.ContentSecurityPolicyMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "localllm.gateway.security.LoginRequiredMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
]

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "localllm.gateway.security.csp_nonce",
            ]
        },
    }
]

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": HOME / "localllm.sqlite3",
        "CONN_MAX_AGE": 0,
        "OPTIONS": {
            "timeout": 10,
            # DEFERRED loses read-modify-write transactions to "database is locked"; IMMEDIATE none.
            "transaction_mode": "IMMEDIATE",
            # WAL is set once by `serve`: setting it on each new connection can fail as busy.
            "init_command": "PRAGMA synchronous=NORMAL; PRAGMA journal_size_limit=67108864; "
            "PRAGMA temp_store=MEMORY; PRAGMA cache_size=-16000;",
        },
        "TEST": {"NAME": HOME / "test.sqlite3"},
    }
}
CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}

PASSWORD_HASHERS = [
    "django.contrib.auth.hashers.ScryptPasswordHasher",
    "django.contrib.auth.hashers.PBKDF2PasswordHasher",
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator"},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "chat:new"
LOGOUT_REDIRECT_URL = "login"

STATIC_URL = "static/"
STATIC_ROOT = BASE_DIR / "var/build/static"
STATICFILES_DIRS = [BASE_DIR / "static"]
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "whitenoise.storage.CompressedManifestStaticFilesStorage"},
}

SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"  # with "no-referrer" browsers send Origin: null, and no form passes
X_FRAME_OPTIONS = "DENY"
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
CSRF_COOKIE_SAMESITE = "Lax"
# Over plain HTTP on the local machine a Secure cookie would never come back.
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = setting("LOCALLLM_HTTPS") == "1"
if SESSION_COOKIE_SECURE:
    SECURE_HSTS_SECONDS = 30 * 24 * 3600
    SILENCED_SYSTEM_CHECKS = [
        "security.W008",  # every request counts as HTTPS here; from plain HTTP the proxy redirects
        "security.W005",  # other hosts of the domain are not ours to decide for,
        "security.W021",  # nor is the list that browsers are delivered with
    ]
DATA_UPLOAD_MAX_MEMORY_SIZE = 2 << 20

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"plain": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "plain"}},
    "root": {"handlers": ["stderr"], "level": setting("LOG_LEVEL", "WARNING")},
}
