"""Every error of the HTTP APIs in OpenAI's shape, as a full sentence, with the status its client library expects."""

from __future__ import annotations

import logging
import math
from typing import Any

from django.conf import settings
from django.core.exceptions import RequestDataTooBig
from django.http import HttpRequest, JsonResponse
from ninja import NinjaAPI
from ninja.errors import AuthenticationError, HttpError, ValidationError

from localllm.inference.errors import ContextOverflow, NoRoom, ProviderError, QueueFull
from localllm.inference.json_schema.errors import SchemaRefused
from localllm.inference.structured import StructuredError

log = logging.getLogger(__name__)

MAX_VIOLATIONS = 20


class ApiError(Exception):
    """What a client did wrong, or what this server cannot do."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float = 0,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s
        self.details = details  # what OpenAI's shape has no place for

    @property
    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": error if self.details is None else error | {"localllm": self.details}}

    def response(self) -> JsonResponse:
        response = JsonResponse(self.body, status=self.status)
        response._has_been_logged = True  # type: ignore[attr-defined]  # the client's business, not the log's
        if self.status == 401:
            response["WWW-Authenticate"] = "Bearer"
        if self.retry_after_s:
            response["Retry-After"] = str(math.ceil(self.retry_after_s))
        return response


def no_key() -> ApiError:
    return ApiError(
        401,
        "This needs a valid API key. Make one with `manage.py createapikey NAME`, and send it as "
        "`Authorization: Bearer sk-…`.",
        code="invalid_api_key",
    )


def unknown_host(host: str) -> ApiError:
    return ApiError(
        400,
        f"This server does not answer to the name “{host}”. Use one it answers to, or let its admin add this one to "
        "LOCALLLM_ALLOWED_HOSTS.",
        code="unknown_host",
    )


def wrong_method(request: HttpRequest, allowed: str) -> ApiError:
    return ApiError(405, f"{request.path} does not take {request.method}. Use {allowed}.", code="method_not_allowed")


def too_large() -> ApiError:
    limit = f"{settings.DATA_UPLOAD_MAX_MEMORY_SIZE:,} bytes"
    return ApiError(413, f"The body is too large: at most {limit} are taken. Send less text.")


def from_provider(exc: ProviderError, *, is_loaded: bool, schema_param: str = "response_format") -> ApiError:
    """`is_loaded` says whether the model runs: then what it permanently refuses is the request's fault."""
    if isinstance(exc, StructuredError):
        return from_structured(exc, schema_param)
    if isinstance(exc, QueueFull):
        return ApiError(503, str(exc), code="queue_full", retry_after_s=exc.retry_after_s)
    if isinstance(exc, NoRoom):
        return ApiError(503, str(exc), code="insufficient_memory", retry_after_s=exc.retry_after_s)
    if exc.permanent and is_loaded:
        code = "context_length_exceeded" if isinstance(exc, ContextOverflow) else "invalid_prompt"
        return ApiError(400, str(exc), code=code, param="messages")
    return ApiError(503, str(exc), code="model_unavailable")


def from_structured(exc: StructuredError, schema_param: str) -> ApiError:
    """422 where no attempt was valid: to a 5xx OpenAI's clients would send the same request thrice again."""
    status = 422 if exc.kind == "invalid_after_retries" else 400
    param = "max_tokens" if exc.kind == "truncated" else schema_param
    details = {
        "candidate": exc.candidate,
        "violations": [{"path": each.path, "message": each.message} for each in exc.violations[:MAX_VIOLATIONS]],
    }
    return ApiError(status, str(exc), code=exc.kind, param=param, details=details)


def from_refused_schema(exc: SchemaRefused, param: str) -> ApiError:
    return ApiError(400, str(exc), code=exc.kind, param=param, details={"path": exc.path, "keyword": exc.keyword})


def handle_all(api: NinjaAPI) -> None:
    """Make `api` answer every exception in this shape."""

    @api.exception_handler(ApiError)
    def on_api_error(request: HttpRequest, exc: ApiError) -> JsonResponse:
        return exc.response()

    @api.exception_handler(AuthenticationError)
    def on_missing_key(request: HttpRequest, exc: AuthenticationError) -> JsonResponse:
        return no_key().response()

    @api.exception_handler(ValidationError)
    def on_invalid(request: HttpRequest, exc: ValidationError) -> JsonResponse:
        first = exc.errors[0]
        param = _name([part for part in first["loc"][1:] if part != "body"])
        message = first["msg"].removeprefix("Value error, ")
        return ApiError(400, f"{param or 'The body'}: {message}.".replace("..", "."), param=param).response()

    @api.exception_handler(HttpError)
    def on_http_error(request: HttpRequest, exc: HttpError) -> JsonResponse:
        if exc.status_code == 400:
            return ApiError(400, "The body is not JSON. Send a JSON object in UTF-8.").response()
        return ApiError(exc.status_code, str(exc)).response()

    @api.exception_handler(RequestDataTooBig)
    def on_large_body(request: HttpRequest, exc: RequestDataTooBig) -> JsonResponse:
        return too_large().response()

    @api.exception_handler(Exception)
    def on_bug(request: HttpRequest, exc: Exception) -> JsonResponse:
        log.error("%s %s failed.", request.method, request.path, exc_info=exc)
        return bug().response()


def bug() -> ApiError:
    return ApiError(500, "Something went wrong in this server. Its log says what.", code="internal_error")


def _name(loc: list[str | int]) -> str | None:
    """`messages[0].content` from its parts."""
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")
    return name or None
