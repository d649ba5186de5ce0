"""What only HTTP has: its status codes and headers, paths, JSON answers, and clients that break off."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Final

import aiohttp
import pytest
from structlog.testing import capture_logs

from server.errors import Refused
from tests.contract.doors import INGEST_ONLY, READ_ONLY, SECRET, Api, Doors, open_doors
from tests.contract.fakes import NOW
from tests.support.events import make_event, to_ndjson
from tests.support.patience import PATIENCE, until

APIS: Final[tuple[Api, ...]] = ("http",)
"""Those that these tests need (the fixture `doors`)."""

MIB = 1024 * 1024
BODY = to_ndjson([make_event()])
INVALID = {"error": "Invalid API key", "reason": "unauthenticated"}


async def send_raw(doors: Doors, head: str, body: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A request written by hand; the head without its last, empty line."""
    reader, writer = await doors.connect()
    writer.write(f"{head}\r\nHost: x\r\n\r\n".encode() + body)
    return reader, writer


def ingest_head(secret: str, *more: str) -> str:
    key = f"x-api-key: {secret}"
    return "\r\n".join(["POST /v1/ingest HTTP/1.1", key, "Content-Type: application/x-ndjson", *more])


# --- ingest ----------------------------------------------------------------------------------------------------------


async def test_accepted(doors: Doors) -> None:
    answer = await doors.post(BODY)
    assert (answer.status, answer.json) == (202, {"accepted": 1})
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["x-ingest-position"].replace("-", "").replace("_", "").isalnum()
    assert "Preference-Applied" not in answer.headers


async def test_some_rejected(doors: Doors) -> None:
    bad = make_event(cost_usd=None)
    answer = await doors.post(b"\n" + to_ndjson([make_event(), bad]))
    item = {
        "line": 3,
        "event_id": bad["event_id"],
        "field": "cost_usd",
        "code": "missing",
        "message": "cost_usd is required",
    }
    assert (answer.status, answer.json) == (202, {"accepted": 1, "rejected": [item]})


async def test_too_many(doors: Doors) -> None:
    answer = await doors.post(BODY * 101)
    body = {"error": "Max 100 events per batch", "reason": "bad_batch", "rejected": []}
    assert (answer.status, answer.json) == (400, body)


@pytest.mark.parametrize("secret", [None, "", "lqt_", "lqt_" + "9" * 64, "ü", "Bearer " + SECRET, SECRET + " x"])
async def test_no_valid_key(doors: Doors, secret: str | None) -> None:
    answer = await doors.post(BODY, x_api_key=secret)
    assert (answer.status, answer.json) == (401, INVALID)


async def test_a_key_can_end(doors: Doors) -> None:
    doors.add_key(SECRET, expires=NOW)
    assert (await doors.post(BODY)).status == 401
    doors.add_key(SECRET, expires=NOW + 1)
    assert (await doors.post(BODY)).status == 202
    doors.add_key(SECRET, revoked=1)
    assert (await doors.post(BODY)).status == 401


async def test_ingest_takes_no_bearer(doors: Doors) -> None:
    assert (await doors.post(BODY, x_api_key=None, Authorization=f"Bearer {SECRET}")).status == 401


async def test_scopes(doors: Doors) -> None:
    answer = await doors.post(BODY, x_api_key=READ_ONLY)
    assert (answer.status, list(answer.json)) == (403, ["error", "reason"])
    answer = await doors.get("/v1/users", x_api_key=INGEST_ONLY)
    assert (answer.status, list(answer.json)) == (403, ["error", "reason"])


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/x-ndjson", 202),
        ("application/x-ndjson; charset=utf-8", 202),
        ("Application/X-NDJSON;charset=UTF-8", 202),
        ("application/json", 415),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        (None, 415),
        ("", 415),
    ],
)
async def test_content_types(doors: Doors, kind: str | None, status: int) -> None:
    answer = await doors.post(BODY, Content_Type=kind)
    assert answer.status == status
    if status == 415:
        assert answer.headers["Accept"] == "application/x-ndjson"
        assert "Accept-Encoding" not in answer.headers


async def test_an_unknown_encoding(doors: Doors) -> None:
    answer = await doors.post(BODY, Content_Encoding="br")
    assert (answer.status, list(answer.json)) == (415, ["error", "reason"])
    assert answer.headers["Accept-Encoding"] == "gzip, deflate, zstd, identity"
    assert "Accept" not in answer.headers


@pytest.mark.parametrize(
    ("prefer", "applied"),
    [
        ("handling=strict", "handling=strict"),
        ('wait=5, handling="lenient"', "handling=lenient"),
        ("respond-async", None),
        ("handling=partial", None),
    ],
)
async def test_preferences(doors: Doors, prefer: str, applied: str | None) -> None:
    for body, status in (BODY, 202), (b"{}", 400):
        answer = await doors.post(body, Prefer=prefer)
        assert (answer.status, answer.headers.get("Preference-Applied")) == (status, applied)


async def test_the_first_of_two_prefer_headers(doors: Doors) -> None:
    head = ingest_head(SECRET, "Prefer: handling=lenient", "Prefer: handling=strict", "Content-Length: 0")
    reader, writer = await send_raw(doors, head)
    assert b"Preference-Applied: handling=lenient" in await reader.readuntil(b"\r\n\r\n")
    writer.close()


async def test_quota(doors: Doors) -> None:
    details = {"limit": 10, "used": 10, "resetsAt": "2026-05-01T00:00:00.000Z"}
    doors.quotas.refuse_events = Refused("quota_exceeded", "Monthly quota exceeded", retry_after=9**9, details=details)
    answer = await doors.post(BODY)
    assert (answer.status, answer.headers["Retry-After"]) == (429, "60")
    assert answer.json == {"error": "Monthly quota exceeded", "reason": "quota_exceeded", **details}
    assert doors.stored() == []


async def test_the_log_is_away(doors: Doors) -> None:
    doors.publisher.available = False
    answer = await doors.post(BODY)
    assert (answer.status, answer.headers["Retry-After"], list(answer.json)) == (503, "1", ["error", "reason"])
    assert doors.quotas.reservations[0].ended == ["doubted"]
    doors.publisher.available = True
    assert (await doors.post(BODY)).status == 202


async def test_no_room_for_the_body(doors: Doors) -> None:
    doors.services.bodies.limit = 100
    answer = await doors.post(BODY)
    assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
    assert doors.services.bodies.used == 0


async def test_a_fault_of_ours_shows_nothing_of_us(doors: Doors) -> None:
    doors.quotas.refuse_request = RuntimeError("secret detail")  # type: ignore[assignment] # what nobody expects
    with capture_logs() as logs:
        answer = await doors.post(BODY)
    assert (answer.status, answer.json) == (500, {"error": "Internal server error", "reason": "internal"})
    said = [(entry["event"], entry["log_level"]) for entry in logs]
    assert said == [("intake.at_once_failed", "warning"), ("http_request_failed", "error")]


async def slowly(body: bytes, chunk: int = 100_000) -> AsyncIterator[bytes]:
    for start in range(0, len(body), chunk):
        yield body[start : start + chunk]


async def test_chunked(doors: Doors) -> None:
    assert (await doors.post(slowly(BODY, 7))).json == {"accepted": 1}


async def test_chunked_and_too_large(doors: Doors) -> None:
    answer = await doors.post(slowly(b"\n" * (20 * MIB + 1)))
    assert (answer.status, list(answer.json)) == (413, ["error", "reason"])
    assert (await doors.post(slowly(b"\n" * (20 * MIB - len(BODY)) + BODY))).status == 202


async def test_nothing_of_the_body_is_read_before_the_key(doors: Doors) -> None:
    for secret, size, status in ("no key", 1000, b"401"), (SECRET, 21 * MIB, b"413"):
        head = ingest_head(secret, f"Content-Length: {size}", "Expect: 100-continue")
        reader, writer = await send_raw(doors, head)
        assert (await asyncio.wait_for(reader.readline(), PATIENCE)).split()[1] == status  # without a byte of the body
        writer.close()
    reader, writer = await send_raw(doors, ingest_head(SECRET, f"Content-Length: {len(BODY)}", "Expect: 100-continue"))
    assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)).split()[1] == b"100"
    writer.write(BODY)
    assert (await asyncio.wait_for(reader.readline(), PATIENCE)).split()[1] == b"202"
    writer.close()


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (["Content-Length: 1000"], BODY[:100]),
        (["Transfer-Encoding: chunked"], b"5\r\nabcde\r\n"),
        (["Transfer-Encoding: chunked"], b"zzz\r\n"),
        (["Content-Length: 1000", "Expect: 100-continue"], b""),
    ],
    ids=["in the body", "in a chunk", "not a chunk", "before the body"],
)
async def test_a_client_that_breaks_off_is_nothing_to_log(
    doors: Doors, headers: list[str], body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with capture_logs() as logs, caplog.at_level(logging.WARNING):
        for secret in (SECRET, "no key"):  # while the body is read, and after an answer that did not wait for it
            _, writer = await send_raw(doors, ingest_head(secret, *headers), body)
            await asyncio.sleep(0.05)
            writer.transport.abort()
        await until(lambda: doors.services.bodies.used == 0)
        await asyncio.sleep(0.1)
    assert (logs, caplog.records) == ([], [])
    assert (await doors.post(BODY)).status == 202


async def test_what_is_not_http_is_nothing_to_log(doors: Doors, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        reader, writer = await send_raw(doors, "\x16\x03\x01\x02")
        assert (await reader.readline()).split()[1] == b"400"
        writer.close()
    assert caplog.records == []


# --- paths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/page", "/page/", "/v1", "/v1/ingest/", "/v2/ingest", "/%00", "/v1/quota/x"])
async def test_unknown_paths(doors: Doors, path: str) -> None:
    answer = await doors.get(path)
    assert (answer.status, list(answer.json)) == (404, ["error", "reason"])


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/v1/ingest", "POST"),
        ("PUT", "/v1/ingest", "POST"),
        ("POST", "/v1/users", "GET, HEAD"),
        ("DELETE", "/v1/users/u", "GET, HEAD"),
    ],
)
async def test_wrong_methods(doors: Doors, method: str, path: str, allow: str) -> None:
    async with doors.session.request(method, doors.url + path) as response:
        assert (response.status, response.headers["Allow"]) == (405, allow)
        assert list(await response.json()) == ["error", "reason"]


async def test_probes_need_no_key(doors: Doors) -> None:
    async with aiohttp.ClientSession(doors.url) as session:
        async with session.get("/healthz") as response:
            assert (response.status, await response.json()) == (200, {"status": "ok"})
        async with session.get("/readyz") as response:
            assert (response.status, await response.json()) == (200, {"status": "ready"})
        doors.health.gone = ["events 3 to 5 of partition 0 are gone"]
        async with session.get("/readyz") as response:  # what is gone is gone: nothing to be unready for
            assert response.status == 200
            assert await response.json() == {"status": "ready", "warnings": doors.health.gone}
        doors.health.reasons = ["the disk is full", "the worker is 90 s behind"]
        async with session.get("/readyz") as response:
            body = await response.json()
            assert (response.status, body["reasons"]) == (503, doors.health.reasons)
            assert body["warnings"] == doors.health.gone
            assert "the disk is full" in body["error"]
        async with session.get("/healthz") as response:
            assert response.status == 200


# --- reads -----------------------------------------------------------------------------------------------------------

SUMS = (
    b'"requests":2,"errors":1,"input_tokens":576,"output_tokens":18446744073709551621,"cached_tokens":0,'
    b'"cost_usd":0.003413,"unpriced":1'
)


async def test_users(doors: Doors) -> None:
    answer = await doors.get("/v1/users?sort=cost_usd&limit=2&model=a%20b&model=c&after=fa4e_0-1&unattributed=true")
    assert answer.status == 200
    params = {"sort": "cost_usd", "limit": "2", "model": "a b", "unattributed": "true"}
    assert doors.reads.asked == [("", params, "fa4e_0-1")]
    assert SUMS in answer.body  # all digits, no exponent
    body = answer.json
    assert list(body) == ["users", "total", "nextCursor", "asOf"]
    assert body["users"][0] == {
        "user_id": "u/1 ä%",
        **json.loads(b"{" + SUMS + b"}"),
        "first_seen": "2026-04-20T11:00:00.000Z",
        "last_seen": "2026-04-20T11:00:01.200Z",
    }
    assert [body["users"][1][name] for name in ("user_id", "cost_usd", "first_seen", "last_seen")] == [
        None,
        0,
        None,
        None,
    ]
    assert body["total"] == {"users": 2, **json.loads(b"{" + SUMS + b"}")}
    assert (body["nextCursor"], body["asOf"]) == ("next", "2026-04-20T12:00:00.000Z")


async def test_user(doors: Doors) -> None:
    body = (await doors.get("/v1/users/u1?start=2026-04-01")).json
    assert doors.reads.asked == [("u1", {"start": "2026-04-01"}, None)]
    row = {"user_id", "first_seen", "last_seen", *json.loads(b"{" + SUMS + b"}")}
    assert set(body) == row | {"byModel", "byDay", "asOf"}
    assert body["byModel"] == [{"provider": "openai", "model": "gpt-4o", **json.loads(b"{" + SUMS + b"}")}]
    assert body["byDay"] == [{"day": "2026-04-20", **json.loads(b"{" + SUMS + b"}")}]


@pytest.mark.parametrize(
    ("query", "user_id"),
    [
        ("user_id=..", ".."),
        ("user_id=%2E", "."),
        ("userId=.", "."),
        ("user_id=a%2Fb%20+%C3%BC", "a/b  ü"),
        ("user_id=%20", " "),
    ],
)
async def test_a_user_by_a_parameter(doors: Doors, query: str, user_id: str) -> None:
    """Clients and proxies resolve `.` and `..` in a path, also when they are escaped."""
    answer = await doors.get(f"/v1/users/?{query}&start=2026-04-01&after=t")
    assert answer.status == 200
    assert doors.reads.asked == [(user_id, {"start": "2026-04-01"}, "t")]
    assert answer.json == (await doors.get("/v1/users/u1")).json


@pytest.mark.parametrize("query", ["", "?", "?user_id=", "?start=2026-04-01", "?user_id=a&userId=b"])
async def test_no_user_by_a_parameter(doors: Doors, query: str) -> None:
    answer = await doors.get(f"/v1/users/{query}")
    assert answer.status == 404
    assert "GET /v1/users/?user_id=ID" in answer.json["error"]
    assert doors.reads.asked == []


@pytest.mark.parametrize(
    ("path", "user_id"),
    [
        ("u1", "u1"),
        ("a%2Fb", "a/b"),
        ("a%2fb", "a/b"),
        ("a/b", "a/b"),
        ("%2F", "/"),
        ("%252F", "%2F"),
        ("100%25", "100%"),
        ("a%3Fb%23c%26d", "a?b#c&d"),
        ("a+b", "a+b"),
        ("%20%0A%00", " \n\0"),
        ("%C3%BC%F0%9F%98%80", "ü😀"),
        ("%FF", "\ufffd"),
        ("..", ".."),
        ("%2E", "."),
    ],
)
async def test_user_ids_of_any_characters(doors: Doors, path: str, user_id: str) -> None:
    reader, writer = await send_raw(doors, f"GET /v1/users/{path} HTTP/1.1\r\nx-api-key: {SECRET}")
    assert (await reader.readline()).split()[1] == b"200"
    assert doors.reads.asked[0][0] == user_id
    writer.close()


async def test_costs(doors: Doors) -> None:
    answer = await doors.get("/v1/costs?start=2026-04-01T05:00:00Z&after=x")
    assert doors.reads.asked == [("", {"start": "2026-04-01T05:00:00Z"}, "x")]
    third = b'"avgCost":0.333333333333,"cacheHitRate":0.333333333333'
    sums = (
        b'"requests":3,"errors":1,"input_tokens":600,"output_tokens":18446744073709551616,"cached_tokens":200,'
        b'"cost_usd":1,"unpriced":0'
    )
    row = b'"cost_usd":0.003413,"requests":2,"errors":1'
    name = b'"provider":"openai","model":"gpt-4o"'
    assert answer.body == (
        b'{"byModel":[{"provider":"openai","model":"gpt-4o","tokens":18446744073709552216,'
        + sums
        + b","
        + third
        + b',"latencyMs":{"p50":857,"p95":1.25,"p99":2147483648,"measured":2}}],'
        b'"daily":[{"day":"2026-04-20",' + SUMS + b"}],"
        b'"dailyByModel":[{"day":"2026-04-20",' + name + b"," + row + b"}],"
        b'"total":{' + sums + b'},"monthToDate":1.5,"forecast30d":10000000000000000000,'
        b'"cacheHitRate":0.333333333333,"asOf":"2026-04-20T12:00:00.000Z"}'
    )


async def test_quota_read(doors: Doors) -> None:
    answer = await doors.get("/v1/quota?after=x")
    assert doors.reads.asked == [("", {}, "x")]
    assert answer.json == {
        "organization": "default",
        "period": "2026-04",
        "limit": 10_000,
        "used": 1,
        "remaining": 9_999,
        "resetsAt": "2026-04-20T13:00:00.000Z",
        "windows": {
            "minute": {"start": "2026-04-20T12:00:00.000Z", "used": 1, "limit": None},
            "month": {"start": "1970-01-01T00:00:00.000Z", "used": 1, "limit": 5},
        },
        "duplicates": 3,
        "conflicts": 4,
    }


@pytest.mark.parametrize("path", ["/v1/users", "/v1/users/u1", "/v1/costs", "/v1/quota"])
async def test_reads_take_a_key_or_a_bearer(doors: Doors, path: str) -> None:
    for headers, status in (
        ({}, 401),
        ({"x-api-key": READ_ONLY}, 200),
        ({"x-api-key": INGEST_ONLY}, 403),
        ({"x-api-key": "no"}, 401),
        ({"Authorization": f"Bearer {READ_ONLY}"}, 200),
        ({"Authorization": f"bearer  {READ_ONLY}"}, 200),
        ({"Authorization": READ_ONLY}, 401),
        ({"Authorization": f"Basic {READ_ONLY}"}, 401),
        ({"Authorization": f"Bearer {READ_ONLY}", "x-api-key": "no"}, 401),
    ):
        async with doors.session.get(doors.url + path, headers=headers) as response:
            assert response.status == status, headers


@pytest.mark.parametrize("path", ["/v1/users", "/v1/users/u1", "/v1/users/", "/v1/costs", "/v1/quota", "/v1/budgets"])
async def test_a_read_without_a_valid_key_is_told_so_whatever_else_is_wrong(doors: Doors, path: str) -> None:
    doors.reads.refuse = Refused("bad_request", "limit must be a number")
    for query in ("limit=x&start=now&cursor=%ff", "projectId=other", "nonsense=1", "user_id=&user_id=", "after=beef"):
        for key in ("no", "", "ü", INGEST_ONLY):
            answer = await doors.get(f"{path}?{query}", x_api_key=key)
            assert answer.status == (403 if key == INGEST_ONLY else 401), (query, key)


@pytest.mark.parametrize(
    "query", ["environment=x", "user_id=", "lastEventId=x", "after=beef_0-1", "projectId=other", "after=beef&after="]
)
@pytest.mark.parametrize("key", ["no", "", "ü"])
async def test_a_stream_without_a_valid_key_is_told_so_whatever_else_is_wrong(
    doors: Doors, query: str, key: str
) -> None:
    answer = await doors.get(f"/v1/stream/users?{query}", x_api_key=key, Last_Event_ID="x")
    assert (answer.status, answer.json) == (401, INVALID)


@pytest.mark.parametrize(
    ("refused", "status"),
    [
        (Refused("bad_request", "limit must be a number"), 400),
        (Refused("forbidden", "Another project"), 403),
        (Refused("not_found", "No such user"), 404),
        (Refused("not_yet_visible", "Not yet"), 504),
    ],
)
async def test_refused_reads(doors: Doors, refused: Refused, status: int) -> None:
    doors.reads.refuse = refused
    answer = await doors.get("/v1/users/u1")
    assert (answer.status, answer.json) == (status, {"error": refused.message, "reason": refused.reason})


async def test_the_servers_default_handling() -> None:
    async with open_doors(handling="strict", apis=APIS) as doors:
        body = to_ndjson([make_event(), make_event(model=None)])
        assert (await doors.post(body)).status == 400
        assert (await doors.post(body, Prefer="handling=lenient")).json == {"accepted": 2}


async def test_a_keys_handling_goes_before_the_servers_and_behind_prefer() -> None:
    async with open_doors(handling="strict", apis=APIS) as doors:
        body = to_ndjson([make_event(), make_event(model=None)])
        for handling, status, accepted in (
            ("lenient", 202, 2),
            ("partial", 202, 1),
            ("strict", 400, None),
            (None, 400, None),
        ):
            doors.add_key(SECRET, handling=handling)
            answer = await doors.post(body)
            assert (answer.status, answer.json.get("accepted")) == (status, accepted)
            assert "Preference-Applied" not in answer.headers
            assert (await doors.post(body, Prefer="handling=lenient")).json == {"accepted": 2}
            assert (await doors.post(body, Prefer="handling=strict")).status == 400
        stored = [request.source.handling for request, _ in doors.stored()]
        assert set(stored) == {"lenient", "partial"}


@pytest.mark.parametrize(
    ("method", "path", "secret", "status"),
    [
        ("POST", "/v1/ingest", SECRET, 202),
        ("POST", "/v1/ingest", READ_ONLY, 403),
        ("POST", "/v1/ingest", "no key", 401),
        ("GET", "/v1/ingest", SECRET, 405),
        ("GET", "/v1/users", SECRET, 200),
        ("HEAD", "/v1/users", SECRET, 200),
        ("GET", "/v1/costs?start=x", SECRET, 200),
        ("GET", "/v1/users/u1", SECRET, 200),
        ("GET", "/v1/costs", SECRET, 200),
        ("GET", "/v1/quota", SECRET, 200),
        ("GET", "/v1/budgets", SECRET, 200),
        ("GET", "/v1/stream/users", SECRET, 200),
        ("GET", "/v1/stream/users", INGEST_ONLY, 403),
        ("GET", "/v1/not/there", SECRET, 404),
        ("GET", "/v1/", SECRET, 404),
    ],
)
async def test_no_answer_of_the_api_is_kept_or_guessed_at(
    doors: Doors, method: str, path: str, secret: str, status: int
) -> None:
    headers = {"x-api-key": secret, "Content-Type": "application/x-ndjson"}
    async with doors.session.request(method, doors.url + path, data=BODY, headers=headers) as response:
        assert response.status == status
        assert response.headers.getall("Cache-Control") == ["no-store"]
        assert response.headers.getall("X-Content-Type-Options") == ["nosniff"]
