"""The event store in `/metrics`: samples of what is known, and none of what is not."""

import asyncio

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from server.telemetry.store_metrics import Building, Scrubbed, StoreMetrics, StoreStatus


async def status_of(said: StoreStatus | None) -> str:
    async def ask() -> StoreStatus | None:
        return said

    metrics, registry = StoreMetrics(ask), CollectorRegistry()
    registry.register(metrics)
    running = asyncio.create_task(metrics.run())
    await asyncio.sleep(0)  # it has asked
    running.cancel()
    text = generate_latest(registry).decode()
    return "".join(f"{line}\n" for line in text.splitlines() if not line.startswith("#"))


@pytest.mark.parametrize(
    ("building", "build"),
    [(None, (0, 0, 0)), (Building(40, 100, 7), (40, 100, 7)), (Building(0, 100), (0, 100, None))],
)
async def test_what_is_known_is_shown(building: Building | None, build: tuple[int, int, int | None]) -> None:
    scrubbed = Scrubbed(2, 70.5) if building else Scrubbed()
    text = await status_of(StoreStatus(1.5, {1: 3, 0: 0}, building, scrubbed, skips=4))
    done, of, left = build
    assert text == (
        "spendstream_store_lag_seconds 1.5\n"
        'spendstream_store_lag_messages{partition="0"} 0.0\n'
        'spendstream_store_lag_messages{partition="1"} 3.0\n'
        f"spendstream_store_scrub_damaged_segments {scrubbed.damaged}.0\n"
        + ("spendstream_store_scrub_age_seconds 70.5\n" if building else "")
        + "spendstream_store_skips 4.0\n"
        f"spendstream_store_build_done_messages {done}.0\n"
        f"spendstream_store_build_of_messages {of}.0\n"
        + (f"spendstream_store_build_left_seconds {left}.0\n" if left is not None else "")
    )


async def test_what_nobody_knows_is_not() -> None:
    assert await status_of(None) == ""
