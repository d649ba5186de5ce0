"""The admin API on a real log; the directory that the doors answer from follows it as a process's does."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from processor.core.clock import DAY, format_timestamp
from processor.log.address import LogAddress
from processor.log.embedded.log import Log
from server.tenancy.admin_service import AdminService
from server.tenancy.administration import Administration, NewKey
from tests.contract.doors import INGEST_ONLY, SECRET, Answer, Doors, open_doors
from tests.contract.fakes import NOW
from tests.support.events import make_event, to_ndjson
from tests.support.following import follow


class Office:
    """Doors with an admin API, and a key for one organization and one for all."""

    def __init__(self, doors: Doors, local: str, whole: str) -> None:
        self.doors = doors
        self.local = local
        self.whole = whole

    async def call(self, method: str, path: str, body: Any = None, key: str | None = None) -> Answer:
        kind = "data" if isinstance(body, bytes) else "json"
        headers = {"x-api-key": self.local if key is None else key}
        url = f"{self.doors.url}/v1/admin{path}"
        async with self.doors.session.request(method, url, headers=headers, **{kind: body}) as response:
            return Answer(response.status, dict(response.headers), await response.read())

    async def ingest(self, key: str) -> int:
        return (await self.doors.post(to_ndjson([make_event()]), x_api_key=key)).status


@asynccontextmanager
async def open_office(tmp_path: Path) -> AsyncIterator[Office]:
    address = LogAddress(tmp_path / "data")
    log = Log(address.data_dir, partitions=1, create=True)
    administration = Administration(log, NOW)
    local, _ = administration.create_key(NewKey("web", "acme", ("admin",)))
    whole, _ = administration.create_key(NewKey(scopes=("admin",), everywhere=True))

    async with open_doors(desk=lambda directory: AdminService(address, directory, lambda: NOW)) as doors:
        following = asyncio.create_task(follow(log, doors.directory))
        await asyncio.sleep(0)  # it has read all there is
        try:
            yield Office(doors, local, whole)
        finally:
            following.cancel()
            log.close()


async def test_a_key_from_its_making_to_its_end(tmp_path: Path) -> None:
    async with open_office(tmp_path) as office:
        wanted = {"project": "web", "scopes": ["ingest"], "rateLimit": 60, "expires": format_timestamp(NOW + DAY)}
        made = await office.call("POST", "/keys", wanted)
        assert made.status == 201
        assert made.headers["Cache-Control"] == "no-store"
        key = made.json.pop("key")
        assert made.json == {
            "key": key,
            "id": made.json["id"],
            "prefix": key[:12],
            "project": "web",
            "organization": "acme",
            "scopes": ["ingest"],
            "allOrganizations": False,
            "created": format_timestamp(NOW),
            "expires": format_timestamp(NOW + DAY),
            "revoked": None,
            "rateLimit": 60,
            "handling": None,
            "replacedBy": None,
            "state": "active",
        }
        assert await office.ingest(key) == 202
        rotated = await office.call("POST", f"/keys/{made.json['id']}/rotate", {"overlapSeconds": 60})
        assert rotated.status == 201
        assert rotated.json["replaces"]["replacedBy"] == rotated.json["id"]
        assert rotated.json["replaces"]["expires"] == format_timestamp(NOW + 60_000_000)
        assert [await office.ingest(each) for each in (key, rotated.json["key"])] == [202, 202]
        revoked = await office.call("POST", f"/keys/{made.json['prefix']}/revoke")
        assert (revoked.status, revoked.json["state"]) == (200, "revoked")
        assert [await office.ingest(each) for each in (key, rotated.json["key"])] == [401, 202]
        listed = (await office.call("GET", "/keys")).json["keys"]
        assert [each["state"] for each in listed if each["scopes"] == ["ingest"]] == ["revoked", "active"]
        assert key.encode() not in (await office.call("GET", "/keys")).body
        now = await office.call("POST", f"/keys/{rotated.json['id']}/rotate", {"overlapSeconds": 0})
        assert [await office.ingest(each) for each in (rotated.json["key"], now.json["key"])] == [401, 202]


async def test_projects_and_organizations(tmp_path: Path) -> None:
    async with open_office(tmp_path) as office:
        made = await office.call("PUT", "/projects/shop")
        assert made.json == {"project": "shop", "organization": "acme", "created": format_timestamp(NOW)}
        assert (await office.call("PUT", "/projects/shop")).json == made.json
        assert (await office.call("PUT", "/projects/shop", {"organization": "beta"}, office.whole)).status == 409
        projects = (await office.call("GET", "/projects")).json["projects"]
        assert [each["project"] for each in projects] == ["shop", "web"]
        assert (await office.call("PUT", "/orgs/acme", {"monthlyQuota": 5})).status == 403
        for quota in (5, None):
            answer = await office.call("PUT", "/orgs/acme", {"monthlyQuota": quota}, office.whole)
            assert answer.json == {"organization": "acme", "monthlyQuota": quota}
            assert office.doors.directory.organization("acme").monthly_quota == quota
            assert (await office.call("GET", "/orgs")).json == {"organizations": [answer.json]}
        everything = (await office.call("GET", "/orgs", key=office.whole)).json["organizations"]
        assert [each["organization"] for each in everything] == ["acme", "default"]


async def test_a_keys_handling_holds_at_once_and_its_successor_keeps_it(tmp_path: Path) -> None:
    async with open_office(tmp_path) as office:

        async def accepted(key: str, **headers: str) -> int | None:
            body = to_ndjson([make_event(), make_event(model=None)])
            answer = await office.doors.post(body, x_api_key=key, **headers)
            found: int | None = answer.json.get("accepted")
            return found

        made = (await office.call("POST", "/keys", {"project": "web", "handling": "lenient"})).json
        assert (made["handling"], await accepted(made["key"])) == ("lenient", 2)
        strict = {"handling": "strict"}
        changed = await office.call("PATCH", f"/keys/{made['prefix']}", strict)
        assert (changed.status, changed.json["handling"]) == (200, "strict")
        assert changed.json == {**{name: value for name, value in made.items() if name != "key"}, **strict}
        assert await accepted(made["key"]) is None
        assert await accepted(made["key"], Prefer="handling=lenient") == 2
        rotated = (await office.call("POST", f"/keys/{made['id']}/rotate", {"overlapSeconds": 60})).json
        assert (rotated["handling"], await accepted(rotated["key"])) == ("strict", None)
        replaced = await office.call("PATCH", f"/keys/{made['id']}", {"handling": None})
        assert (replaced.json["replacedBy"], replaced.json["expires"]) == (
            rotated["id"],
            format_timestamp(NOW + 60_000_000),
        )
        assert await accepted(made["key"]) == 1
        assert await accepted(rotated["key"]) is None
        await office.call("POST", f"/keys/{made['id']}/revoke")
        assert (await office.call("PATCH", f"/keys/{made['id']}", strict)).status == 409
        assert await office.ingest(made["key"]) == 401


async def test_another_organization_is_not_there(tmp_path: Path) -> None:
    async with open_office(tmp_path) as office:
        wanted = {"project": "theirs", "organization": "beta"}
        theirs = (await office.call("POST", "/keys", wanted, office.whole)).json
        assert "theirs" not in [each["project"] for each in (await office.call("GET", "/keys")).json["keys"]]
        for what in ("rotate", "revoke"):
            for name in (theirs["id"], theirs["prefix"]):
                assert (await office.call("POST", f"/keys/{name}/{what}")).status == 404
                assert (await office.call("PATCH", f"/keys/{name}", {"handling": None})).status == 404
        assert (await office.call("POST", "/keys", wanted)).status == 403
        assert (await office.call("POST", "/keys", {"project": "theirs"})).status == 409
        assert await office.ingest(theirs["key"]) == 202


async def test_only_keys_with_the_scope_are_let_in(tmp_path: Path) -> None:
    async with open_office(tmp_path) as office:
        for method, path in (
            ("GET", "/keys"),
            ("POST", "/keys"),
            ("GET", "/orgs"),
            ("PUT", "/orgs/acme"),
            ("GET", "/projects"),
            ("PUT", "/projects/x"),
            ("PATCH", "/keys/x"),
            ("PATCH", f"/keys/{SECRET}"),
            ("POST", "/keys/x/rotate"),
            ("POST", "/keys/x/revoke"),
            ("POST", f"/keys/{SECRET}/rotate"),
            ("POST", f"/keys/{SECRET}/revoke"),
        ):
            for key, status in ((SECRET, 403), (INGEST_ONLY, 403), ("lqt_" + "9" * 64, 401), ("", 401)):
                answer = await office.call(method, path, b"not read", key)
                assert answer.status == status, (method, path)
                assert set(answer.json) == {"error", "reason"}
        assert (await office.doors.get("/v1/users", x_api_key=office.local)).status == 403
        assert await office.ingest(office.local) == 403


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "says"),
    [
        ("POST", "/keys", b"{", 400, "The body is not what is expected"),
        ("POST", "/keys", b"[]", 400, "Expected `object`, got `array`"),
        ("POST", "/keys", b"\xff", 400, "The body is not"),
        ("POST", "/keys", {"rate": 1}, 400, "unknown field `rate`"),
        ("POST", "/keys", {"rateLimit": "60"}, 400, "at `$.rateLimit`"),
        ("POST", "/keys", {"rateLimit": 0}, 400, "from 1 to"),
        ("POST", "/keys", {"scopes": ["root"]}, 400, "ingest, read, admin"),
        ("POST", "/keys", {"expires": "soon"}, 400, "expires must be a time"),
        ("POST", "/keys", {"expires": "2001-01-01T00:00:00Z"}, 400, "in the future"),
        ("POST", "/keys", {"project": "a b"}, 400, "letters, digits"),
        ("POST", "/keys", b" " * 65_537, 413, "larger than 65536 bytes"),
        ("PUT", "/projects/a%2Fb", None, 400, "letters, digits"),
        ("PUT", "/orgs/acme", {}, 400, "monthlyQuota"),
        ("PUT", "/orgs/acme", {"monthlyQuota": -1}, 400, "whole number"),
        ("PUT", "/orgs/acme", {"monthlyQuota": 1.5}, 400, "Expected `int | null`"),
        ("POST", "/keys", {"handling": "odd"}, 400, "at `$.handling`"),
        ("PATCH", "/keys/x", {"handling": "odd"}, 400, "at `$.handling`"),
        ("PATCH", "/keys/x", {}, 400, "missing required field `handling`"),
        ("PATCH", "/keys/x", {"handling": None, "rateLimit": 5}, 400, "unknown field `rateLimit`"),
        ("PATCH", "/keys/x", {"handling": None}, 404, "No key starts with 'x'"),
        ("POST", "/keys/x/rotate", {"overlapSeconds": -1}, 400, "from 0 to"),
        ("POST", "/keys/x/rotate", {"overlapSeconds": 10**12}, 400, "from 0 to"),
        ("POST", "/keys/x/rotate", None, 404, "No key starts with 'x'"),
        ("POST", "/keys/x/revoke", {"why": 1}, 400, "unknown field"),
        ("DELETE", "/keys", None, 405, "not allowed"),
        ("GET", "/nothing", None, 404, "nothing at this path"),
    ],
)
async def test_clear_errors(tmp_path: Path, method: str, path: str, body: Any, status: int, says: str) -> None:
    async with open_office(tmp_path) as office:
        answer = await office.call(method, path, body, office.whole)
        assert answer.status == status
        assert says in answer.json["error"]


async def test_a_key_has_no_place_in_a_path(tmp_path: Path) -> None:
    async with open_office(tmp_path) as office:
        answer = await office.call("POST", f"/keys/{office.local}/revoke")
        assert answer.status == 400
        assert office.local.encode() not in answer.body


async def test_a_log_that_cannot_be_asked(tmp_path: Path) -> None:
    async with open_office(tmp_path) as office:
        for path in (tmp_path / "data").glob("log.db*"):
            path.rename(path.with_name(f"away-{path.name}"))
        answer = await office.call("GET", "/keys")
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
