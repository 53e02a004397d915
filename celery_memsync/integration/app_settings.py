"""The settings of a Celery app, and what its reports hide of them."""
from __future__ import annotations

import functools
from typing import Any

from celery.exceptions import ImproperlyConfigured

from ..settings import SCHEMES
from ..urls import scheme_of, with_login_in_front, with_master_name


def app_settings(conf: Any) -> dict[str, Any]:
    """Return the settings of an app that are ours, by name without a namespace such as ``CELERY_``."""
    hide_password(conf)
    names = {str(name).lower() for name in conf}
    # Only going through the names has loaded a configuration that was pending, and its prefix with it.
    prefix = (getattr(conf, "prefix", None) or "").lower()
    ours = {name[len(prefix):] if prefix and name.startswith(prefix) else name for name in names}
    return {name: conf.get(name) for name in ours if name.startswith("memsync_")}


def hide_password(conf: Any) -> None:
    """Move the password of ``memsync_backend`` to where Celery masks it in its reports."""
    for name in list(conf):
        # A name may have a prefix, such as CELERY_.
        if not str(name).lower().endswith("memsync_backend") or not isinstance(conf[name], str):
            continue
        url = with_login_in_front(conf[name])
        if url != conf[name]:
            conf[name] = url


def mask_reports(app: Any) -> None:
    """Hide the password in each report of an app, whenever the setting was made."""
    bugreport = app.bugreport
    if hasattr(bugreport, "hides_password"):
        return

    @functools.wraps(bugreport)
    def report(*args: Any, **kwargs: Any) -> Any:
        hide_password(app.conf)
        return bugreport(*args, **kwargs)

    report.hides_password = True  # type: ignore[attr-defined]
    app.bugreport = report


def backend_of(conf: Any) -> str:
    """Return the URL of the result backend or the broker, whichever is Redis first."""
    for name, about in (("result_backend", "result_backend_transport_options"), ("broker_url", "broker_transport_options")):
        url = conf.get(name)
        if isinstance(url, (list, tuple)):
            url = url[0] if url else None
        if isinstance(url, str) and scheme_of(url) == "sentinel":
            return with_master_name(url, (conf.get(about) or {}).get("master_name"))
        if isinstance(url, str):
            url = url.split(";")[0].replace("redis+socket://", "unix://", 1)
            if scheme_of(url) in SCHEMES:
                return url
    raise ImproperlyConfigured(
        "memsync_backend is not set, and neither the result backend nor the broker is Redis; "
        "set it to a Redis URL such as redis://localhost:6379/1, or to embedded:// to try things out"
    )
