"""The admin API over HTTP, `/v1/admin/...`: JSON in, JSON out, for keys with the scope `admin`.

    GET  /v1/admin/orgs                  PUT  /v1/admin/orgs/{name}         {"monthlyQuota": 10000 | null}
    GET  /v1/admin/projects              PUT  /v1/admin/projects/{name}     {"organization"?}
    GET  /v1/admin/keys                  POST /v1/admin/keys                {"project"?, "organization"?, "scopes"?,
                                                                             "rateLimit"?, "expires"?, "handling"?}
    PATCH /v1/admin/keys/{id}            {"handling": "partial" | "strict" | "lenient" | null}
    POST /v1/admin/keys/{id}/rotate      {"overlapSeconds"?}
    POST /v1/admin/keys/{id}/revoke

Budgets are set beside the reads, where `GET /v1/budgets` lists them:

    PUT  /v1/budgets                     {"usd", "window": "day" | "month", "user_id"?, "model"?, "thresholds"?}
    DELETE /v1/budgets/{id}

A key is named by its id, or by its prefix as listed; a path must not contain the secret, as paths are logged.
"""

import asyncio
from collections.abc import Awaitable, Callable
from decimal import Decimal
from http import HTTPStatus
from typing import Any, Final, TypeVar

import msgspec
from aiohttp import hdrs, web
from aiohttp.web_protocol import RequestPayloadError
from msgspec import Struct

from processor.core.clock import SECOND, parse_timestamp
from processor.core.events.event import Handling
from server.alerts.budget_admin import BudgetAdmin, NewBudget
from server.alerts.budget_json import budget_alone
from server.alerts.budgets import DEFAULT_THRESHOLDS, Window
from server.errors import Refused
from server.services import Services, secret_of
from server.status import API_HEADERS
from server.tenancy import admin_json
from server.tenancy.admin_service import AdminService
from server.tenancy.administration import OVERLAP, Administration, NewKey
from server.tenancy.keys import DEFAULT_SCOPES, Key, is_well_formed

ROOT: Final = "/v1/admin"
BUDGETS: Final = "/v1/budgets"
MAX_BODY: Final = 64 * 1024
BODY_TIMEOUT: Final = 10.0
MAX_OVERLAP: Final = 366 * 24 * 3600
"""Most seconds of `overlapSeconds`."""

T = TypeVar("T")
S = TypeVar("S", bound=Struct)


class QuotaBody(Struct, rename="camel", forbid_unknown_fields=True):
    """The body of `PUT /v1/admin/orgs/{name}`."""

    monthly_quota: int | None


class ProjectBody(Struct, rename="camel", forbid_unknown_fields=True):
    """The body of `PUT /v1/admin/projects/{name}`."""

    organization: str | None = None


class KeyBody(Struct, rename="camel", forbid_unknown_fields=True):
    """The body of `POST /v1/admin/keys`."""

    project: str | None = None
    organization: str | None = None
    scopes: tuple[str, ...] = DEFAULT_SCOPES
    rate_limit: int | None = None
    expires: str | None = None
    handling: Handling | None = None


class KeyChangeBody(Struct, rename="camel", forbid_unknown_fields=True):
    """Of `PATCH /v1/admin/keys/{id}`."""

    handling: Handling | None


class RotateBody(Struct, rename="camel", forbid_unknown_fields=True):
    """The body of `POST /v1/admin/keys/{id}/rotate`."""

    overlap_seconds: int = OVERLAP // SECOND


class BudgetBody(Struct, forbid_unknown_fields=True):
    """The body of `PUT /v1/budgets`; the names are those of events."""

    usd: Decimal
    window: Window
    user_id: str | None = None
    model: str | None = None
    thresholds: tuple[int, ...] = DEFAULT_THRESHOLDS


class EmptyBody(Struct, forbid_unknown_fields=True):
    """The body of a request whose path says everything."""


def add_routes(app: web.Application, services: Services, desk: AdminService) -> None:
    """Add the admin API to `app`, whose middleware answers `Refused`."""
    admin = _Admin(services, desk)
    app.router.add_get(f"{ROOT}/orgs", admin.organizations)
    app.router.add_put(ROOT + "/orgs/{name}", admin.set_quota)
    app.router.add_get(f"{ROOT}/projects", admin.projects)
    app.router.add_put(ROOT + "/projects/{name}", admin.create_project)
    app.router.add_get(f"{ROOT}/keys", admin.keys)
    app.router.add_post(f"{ROOT}/keys", admin.create_key)
    app.router.add_patch(ROOT + "/keys/{id}", admin.change_key)
    app.router.add_post(ROOT + "/keys/{id}/rotate", admin.rotate)
    app.router.add_post(ROOT + "/keys/{id}/revoke", admin.revoke)
    app.router.add_put(BUDGETS, admin.set_budget)
    app.router.add_delete(BUDGETS + "/{id}", admin.delete_budget)


class _Admin:
    def __init__(self, services: Services, desk: AdminService) -> None:
        self._services = services
        self._desk = desk

    async def organizations(self, request: web.Request) -> web.Response:
        found = await self._run(request, lambda admin: admin.organizations())
        return _answer({"organizations": [admin_json.of_organization(each) for each in found]})

    async def set_quota(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        body = await self._body(request, QuotaBody)
        found = await self._run(request, lambda admin: admin.set_quota(name, body.monthly_quota))
        return _answer(admin_json.of_organization(found))

    async def projects(self, request: web.Request) -> web.Response:
        found = await self._run(request, lambda admin: admin.projects())
        return _answer({"projects": [admin_json.of_project(each) for each in found]})

    async def create_project(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        body = await self._body(request, ProjectBody)
        found = await self._run(request, lambda admin: admin.create_project(name, body.organization))
        return _answer(admin_json.of_project(found))

    async def keys(self, request: web.Request) -> web.Response:
        found = await self._run(request, lambda admin: admin.all_keys())
        return _answer({"keys": [self._show(each) for each in found]})

    async def create_key(self, request: web.Request) -> web.Response:
        body = await self._body(request, KeyBody)
        expires = None if body.expires is None else _time(body.expires)
        wanted = NewKey(body.project, body.organization, body.scopes, body.rate_limit, expires, handling=body.handling)
        secret, key = await self._run(request, lambda admin: admin.create_key(wanted))
        return _answer({"key": secret, **self._show(key)}, HTTPStatus.CREATED)

    async def change_key(self, request: web.Request) -> web.Response:
        body = await self._body(request, KeyChangeBody)
        reference = _reference(request)
        return _answer(self._show(await self._run(request, lambda admin: admin.set_handling(reference, body.handling))))

    async def rotate(self, request: web.Request) -> web.Response:
        body = await self._body(request, RotateBody)
        reference = _reference(request)
        if not 0 <= body.overlap_seconds <= MAX_OVERLAP:
            raise Refused("bad_request", f"overlapSeconds must be a whole number from 0 to {MAX_OVERLAP}")
        overlap = body.overlap_seconds * SECOND
        secret, key, old = await self._run(request, lambda admin: admin.rotate(reference, overlap))
        return _answer({"key": secret, **self._show(key), "replaces": self._show(old)}, HTTPStatus.CREATED)

    async def revoke(self, request: web.Request) -> web.Response:
        await self._body(request, EmptyBody)
        reference = _reference(request)
        return _answer(self._show(await self._run(request, lambda admin: admin.revoke(reference))))

    async def set_budget(self, request: web.Request) -> web.Response:
        project = request.query.get("projectId")
        body = await self._body(request, BudgetBody)
        wanted = NewBudget(body.usd, body.window, body.user_id, body.model, body.thresholds)
        return _answer(
            budget_alone(await self._run(request, lambda admin: BudgetAdmin(admin).set_budget(wanted, project)))
        )

    async def delete_budget(self, request: web.Request) -> web.Response:
        name, project = request.match_info["id"], request.query.get("projectId")
        return _answer(
            budget_alone(await self._run(request, lambda admin: BudgetAdmin(admin).delete_budget(name, project)))
        )

    def _show(self, key: Key) -> dict[str, Any]:
        return admin_json.of_key(key, self._services.clock())

    def _actor(self, request: web.Request) -> Key:
        secret = secret_of(request.headers.get("x-api-key"), request.headers.get(hdrs.AUTHORIZATION))
        return self._services.authenticate(secret, "admin")

    async def _run(self, request: web.Request, operation: Callable[[Administration], T]) -> T:
        return await self._desk.run(self._actor(request), operation)

    async def _body(self, request: web.Request, kind: type[S]) -> S:
        """Read the request's body; no body counts as an empty object. Call it after the key was checked."""
        self._actor(request)
        raw = await _bounded(_read(request))
        try:
            return msgspec.json.decode(raw or b"{}", type=kind)
        except msgspec.DecodeError as error:  # its text names the path of what is wrong, never a value
            raise Refused("bad_request", f"The body is not what is expected: {error}") from None
        except UnicodeDecodeError:
            raise Refused("bad_request", "The body is not UTF-8") from None


async def _bounded(body: Awaitable[bytes]) -> bytes:
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            return await body
    except TimeoutError:
        raise Refused("bad_request", f"The body did not arrive within {BODY_TIMEOUT:.0f} seconds") from None
    except RequestPayloadError:
        raise Refused("bad_request", "The body is cut off or not well framed") from None


async def _read(request: web.Request) -> bytes:
    body = b""
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > MAX_BODY:
            raise Refused("too_large", f"The body is larger than {MAX_BODY} bytes")
    return body


def _reference(request: web.Request) -> str:
    reference = request.match_info["id"]
    if is_well_formed(reference):
        raise Refused("bad_request", "Name a key by its id or prefix: a path must not contain the key itself")
    return reference


def _time(text: str) -> int:
    try:
        return parse_timestamp(text)
    except ValueError:
        raise Refused("bad_request", "expires must be a time like 2027-01-31T00:00:00Z") from None


def _answer(body: object, status: int = 200) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(body), status=status, content_type="application/json", headers=API_HEADERS
    )
