"""Setting budgets over the API, and what is answered to those who ask for them."""

from pathlib import Path
from typing import Any

import pytest

from server.alerts.shelf import BudgetShelf
from tests.contract.doors import INGEST_ONLY, READ_ONLY, SECRET, Answer, open_doors
from tests.contract.test_admin import Office, open_office

URL = "/v1/budgets"


async def call(office: Office, method: str, path: str, body: Any = None, key: str | None = None) -> Answer:
    kind = "data" if isinstance(body, bytes) else "json"
    headers = {"x-api-key": office.local if key is None else key}
    url = office.doors.url + path
    async with office.doors.session.request(method, url, headers=headers, **{kind: body}) as response:
        return Answer(response.status, dict(response.headers), await response.read())


async def test_a_budget_from_its_making_to_its_end(tmp_path: Path) -> None:
    async with open_office(tmp_path) as office:
        wanted = {"usd": "12.340000000001", "window": "day", "user_id": "u/1", "thresholds": [100, 50, 100]}
        made = await call(office, "PUT", URL, wanted)
        assert made.status == 200
        assert made.headers["Cache-Control"] == "no-store"
        assert b'"usd":12.340000000001,' in made.body
        name = made.json["id"]
        assert made.json == {
            "id": name,
            "user_id": "u/1",
            "model": None,
            "window": "day",
            "usd": 12.340000000001,
            "thresholds": [50, 100],
            "created": "2026-04-20T12:00:00.000Z",
        }
        assert [budget.project for budget in office.doors.directory.shelf(BudgetShelf).budgets()] == ["web"]
        again = await call(office, "PUT", URL, {"usd": 1e-12, "window": "day", "user_id": "u/1"})
        assert (again.json["id"], again.json["thresholds"]) == (name, [80, 100])
        assert b'"usd":0.000000000001,' in again.body
        other = await call(office, "PUT", URL, {"usd": 5, "window": "day"})
        assert other.json["id"] != name
        assert len(office.doors.directory.shelf(BudgetShelf).budgets("web")) == 2
        assert (await call(office, "DELETE", f"{URL}/{name}")).json == again.json
        assert [budget.id for budget in office.doors.directory.shelf(BudgetShelf).budgets("web")] == [other.json["id"]]
        gone = await call(office, "DELETE", f"{URL}/{name}")
        assert (gone.status, gone.json) == (404, {"error": "This project has no such budget", "reason": "not_found"})


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"window": "day"}, "usd"),
        ({"usd": 0, "window": "day"}, "above 0"),
        ({"usd": -1, "window": "day"}, "above 0"),
        ({"usd": 1_000_000_001, "window": "day"}, "1,000,000,000"),
        (b'{"usd":1e400,"window":"day"}', "1,000,000,000"),
        (b'{"usd":1e-13,"window":"day"}', "12 decimal places"),
        ({"usd": "lots", "window": "day"}, "usd"),
        ({"usd": 1, "window": "week"}, "window"),
        ({"usd": 1, "window": "day", "user_id": ""}, "user_id has 1 to 256"),
        ({"usd": 1, "window": "day", "model": "m" * 257}, "model has 1 to 256"),
        ({"usd": 1, "window": "day", "thresholds": []}, "thresholds"),
        ({"usd": 1, "window": "day", "thresholds": [0]}, "thresholds"),
        ({"usd": 1, "window": "day", "thresholds": [1001]}, "thresholds"),
        ({"usd": 1, "window": "day", "thresholds": list(range(1, 12))}, "thresholds"),
        ({"usd": 1, "window": "day", "colour": "red"}, "colour"),
        (b"{", "body"),
    ],
)
async def test_what_cannot_be_a_budget_is_refused(tmp_path: Path, body: Any, said: str) -> None:
    async with open_office(tmp_path) as office:
        answer = await call(office, "PUT", URL, body)
        assert answer.status == 400
        assert said in answer.json["error"]
        assert office.doors.directory.shelf(BudgetShelf).budgets() == []


async def test_who_may(tmp_path: Path) -> None:
    wanted = {"usd": 1, "window": "day"}
    async with open_office(tmp_path) as office:
        for key in (SECRET, READ_ONLY, INGEST_ONLY):
            assert (await call(office, "PUT", URL, wanted, key)).status == 403
            assert (await call(office, "DELETE", f"{URL}/bud_1", key=key)).status == 403
        assert (await call(office, "PUT", URL, wanted, "lqt_" + "0" * 64)).status == 401
        # The key of one organization sets those of its projects; the one for all of them every project's.
        assert (await call(office, "PUT", f"{URL}?projectId=web", wanted)).status == 200
        assert (await call(office, "PUT", f"{URL}?projectId=default", wanted)).status == 403
        assert (await call(office, "PUT", f"{URL}?projectId=nowhere", wanted)).status == 403
        assert (await call(office, "PUT", f"{URL}?projectId=web", wanted, office.whole)).status == 200
        assert [budget.project for budget in office.doors.directory.shelf(BudgetShelf).budgets()] == ["web"]


async def test_a_project_has_so_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.alerts.budget_admin.MAX_BUDGETS", 2)
    async with open_office(tmp_path) as office:
        for user, status in (("a", 200), ("b", 200), ("c", 409), ("a", 200)):
            answer = await call(office, "PUT", URL, {"usd": 1, "window": "day", "user_id": user})
            assert answer.status == status


async def test_the_list() -> None:
    async with open_doors(apis=["http"]) as doors:
        answer = await doors.get(f"{URL}?projectId=default&after=token", x_api_key=READ_ONLY)
        assert answer.status == 200
        assert b'"usd":0.1,' in answer.body
        assert b'"spent":0.120000000001,"remaining":0,' in answer.body
        [budget] = answer.json["budgets"]
        assert (budget["start"], budget["end"]) == ("2026-04-20T00:00:00.000Z", "2026-04-21T00:00:00.000Z")
        assert [each["threshold"] for each in budget["reached"]] == [80]
        assert doors.reads.asked == [("", {}, "token")]
        for key, path, status in ((INGEST_ONLY, URL, 403), (SECRET, f"{URL}?projectId=other", 403)):
            assert (await doors.get(path, x_api_key=key)).status == status
        assert (await doors.get(f"{URL}?colour=red")).status == 400
