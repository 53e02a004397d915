"""The settings of a Celery app, and what its reports hide of them."""
from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

from celery.exceptions import ImproperlyConfigured

from ..settings import SCHEMES, Settings, allowed_for
from ..urls import as_redis_py, scheme_of, with_login_in_front, with_master_name

#: What reports show instead of a URL that can't be read.
MASK = "********"


class BorrowedBackend(NamedTuple):
    """Redis as the result backend or the broker of an app has it.

    Attributes:
        source: The setting of Celery that names it.
        options: For redis-py, from other settings of Celery.
    """

    url: str
    source: str
    options: Mapping[str, Any]


def app_settings(app: Any) -> dict[str, Any]:
    """Return the settings of an app that are ours, by name without a namespace such as ``CELERY_``.

    Raises:
        ImproperlyConfigured: If one lacks the namespace that the others have, or is in capitals without one.
    """
    conf = app.conf
    hide_password(conf)
    names = {str(name).lower() for name in conf}
    # Only going through the names has loaded a configuration that was pending, and its prefix with it.
    prefix = (getattr(conf, "prefix", None) or "").lower()
    ours = {name[len(prefix):] for name in names if name.startswith(prefix)} | {str(name).lower() for name in conf.changes}
    settings = {name: conf.get(name) for name in ours if name.startswith("memsync_")}
    if prefix:
        _check_prefix(app, prefix, settings)
    else:
        _check_case(conf)
    return settings


def _check_case(conf: Any) -> None:
    """Notice a setting in capitals, which Celery reads with a namespace only."""
    for name in map(str, conf):
        if name.lower().startswith("memsync_") and name != name.lower():
            raise ImproperlyConfigured(f"{name} is not read, because settings of Celery have small letters here; "
                                       f"call it {name.lower()}")


def _check_prefix(app: Any, prefix: str, settings: Mapping[str, Any]) -> None:
    """Notice a setting without the prefix of the others: Celery passes it over, and a default would be taken."""
    source = getattr(app.loader, "conf", None) or ()
    known = {f"memsync_{name}" for name in Settings.__dataclass_fields__}
    for name in map(str, source):
        if name.lower() in known - set(settings):
            raise ImproperlyConfigured(
                f"{name} is not read, because settings of Celery begin with {prefix.upper()} here; "
                f"call it {prefix.upper()}{name.upper()}")


def hide_password(conf: Any) -> None:
    """Move the password of ``memsync_backend`` to where Celery masks it in its reports."""
    for name, given in _backends(conf).items():
        url = with_login_in_front(given)
        if url != given:
            conf[name] = url


def _backends(conf: Any) -> dict[Any, str]:
    """Return ``memsync_backend`` under each name that it has: there may be a prefix, such as CELERY_."""
    return {name: conf[name] for name in list(conf)
            if str(name).lower().endswith("memsync_backend") and isinstance(conf[name], str)}


def mask_reports(app: Any) -> None:
    """Hide the password in each report of an app, whenever the setting was made."""
    bugreport = app.bugreport
    if hasattr(bugreport, "hides_password"):
        return

    @functools.wraps(bugreport)
    def report(*args: Any, **kwargs: Any) -> Any:
        hide_password(app.conf)
        # Of what is no URL, such as one with a slash in its password, the place of the password is unknown.
        unreadable = {name: url for name, url in _backends(app.conf).items() if allowed_for("backend", as_redis_py(url))}
        app.conf.update(dict.fromkeys(unreadable, MASK))
        try:
            return bugreport(*args, **kwargs)
        finally:
            app.conf.update(unreadable)

    report.hides_password = True  # type: ignore[attr-defined]
    app.bugreport = report


def borrowed_backend(conf: Any) -> BorrowedBackend:
    """Return the result backend or the broker, whichever is Redis first.

    Raises:
        ImproperlyConfigured: If none is.
    """
    for source in ("result_backend", "broker_url"):
        url = conf.get(source)
        if isinstance(url, (list, tuple)):
            url = url[0] if url else None
        if not isinstance(url, str):
            continue
        if scheme_of(url) == "sentinel":
            about = "broker_transport_options" if source == "broker_url" else "result_backend_transport_options"
            url = with_master_name(url, (conf.get(about) or {}).get("master_name"))
        else:
            url = as_redis_py(url.split(";")[0])
        if scheme_of(url) in SCHEMES:
            return BorrowedBackend(url, source, _options_of(conf, source))
    raise ImproperlyConfigured(
        "memsync_backend is not set, and neither the result backend nor the broker is Redis; "
        "set it to a Redis URL such as redis://localhost:6379/1, or to embedded:// to try things out"
    )


def _options_of(conf: Any, source: str) -> dict[str, Any]:
    """Return what other settings of Celery say of the connections to its result backend, or to its broker."""
    if source == "broker_url":
        tls, names = conf.get("broker_use_ssl"), [("credential_provider", "broker_credential_provider")]
    else:
        tls = conf.get("redis_backend_use_ssl")
        names = [(option, f"redis_{option}") for option in ("username", "password")]
        names.append(("credential_provider", "redis_backend_credential_provider"))
    options = {option: conf.get(name) for option, name in names if conf.get(name)}
    # As in Celery, a mere True does not switch TLS on.
    return {**options, **tls, "ssl": True} if isinstance(tls, Mapping) and tls else options
