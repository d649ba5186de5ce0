"""`/metrics` of several processes, asked of any of them."""

from contextlib import AsyncExitStack
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from server.processes.siblings import ApiSibling
from server.telemetry.scraping import Scraping


def registry(taken: int) -> CollectorRegistry:
    made = CollectorRegistry()
    Counter("spendstream_taken", "What was taken", ["door"], registry=made).labels("http").inc(taken)
    Histogram("spendstream_seconds", "How long", buckets=(1, 2), registry=made).observe(taken)
    return made


async def test_any_of_them_shows_all(tmp_path: Path) -> None:
    siblings = ApiSibling.create_all(tmp_path, 3)
    ours, theirs = registry(1), registry(2)
    one, two = Scraping(siblings[0]), Scraping(siblings[1])
    async with AsyncExitStack() as doors:
        await doors.enter_async_context(one.door(ours))
        async with two.door(theirs):
            shown = generate_latest(await one.gather(ours)).decode().splitlines()
            assert set(generate_latest(await two.gather(theirs)).decode().splitlines()) == set(shown)
        for line in (
            'spendstream_taken_total{api="0",door="http"} 1.0',
            'spendstream_taken_total{api="1",door="http"} 2.0',
            'spendstream_seconds_bucket{api="1",le="1.0"} 0.0',
            'spendstream_seconds_count{api="0"} 1.0',
            'spendstream_api_answered{api="1"} 1.0',
            'spendstream_api_answered{api="2"} 0.0',
        ):
            assert line in shown
        assert shown.count("# TYPE spendstream_taken_total counter") == 1
        alone = generate_latest(await one.gather(ours)).decode()  # the other one has gone
        assert 'spendstream_api_answered{api="1"} 0.0' in alone
        assert 'api="1",door' not in alone
