"""A view of Django that shows how far the task of a token is."""
from __future__ import annotations

from collections.abc import Callable

from django.http import HttpRequest, HttpResponseBase, JsonResponse
from django.views.decorators.http import require_safe

from ..app import MemSync
from .answers import answer_of


def progress(memsync: MemSync, *, exceptions: bool = False) -> Callable[..., HttpResponseBase]:
    """Return a view that answers with JSON: the progress of a task, for the bearer of its token.

    A page polls it, so it works under WSGI, too.  It needs no login, because the token is the right.  Usage::

        urlpatterns = [path("progress/<str:token>", progress(memsync))]

    Args:
        exceptions: Whether type and message of the exception of a task are shown.
    """
    def view(request: HttpRequest, token: str) -> HttpResponseBase:
        answer = answer_of(memsync, token, exceptions)
        return JsonResponse(answer.content, status=answer.status, headers=answer.headers)

    safe: Callable[..., HttpResponseBase] = require_safe(view)
    return safe
