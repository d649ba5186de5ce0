"""What an API process follows, when a record of it is damaged."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from processor.log.address import LogAddress
from processor.log.embedded.log import Log
from processor.log.embedded.tail import EmbeddedTail
from processor.log.errors import DamagedRecord
from processor.log.records import Record, TopicPartition
from processor.view.view import View
from processor.view.view_follower import ViewFollower
from server.health import LogHealth
from tests.support.patience import PATIENCE
from tests.support.server import wait_until
from tests.support.tables import NOON


class Publisher:
    """A log that takes events, and has none."""

    failure = None

    def log_end(self) -> dict[int, int]:
        return {}


def test_a_damaged_record_makes_an_api_unready_by_name_until_it_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Log(tmp_path, partitions=1).close()

    def poll(tail: EmbeddedTail) -> Iterator[tuple[TopicPartition, list[Record]]]:
        raise DamagedRecord("spendstream.rows", 0, 7)

    monkeypatch.setattr(EmbeddedTail, "poll", poll)
    view, publisher = View(), Publisher()
    follower = ViewFollower(LogAddress(tmp_path), 1, view, lambda: NOON, lambda: None)
    anything: Any = publisher
    health = LogHealth(anything, view, 30, time.monotonic, damage=lambda: follower.damage)
    follower.heals = False  # as on Kafka, where no worker makes the record anew
    follower.start()
    with pytest.raises(DamagedRecord, match=r"record spendstream\.rows:0:7 is damaged"):
        follower.wait_read_all()  # at the start: the process ends with it
    (reason,) = [each for each in health.unready() if "damaged" in each]
    assert (
        reason
        == "the log cannot be read any further: record spendstream.rows:0:7 is damaged: its checksum does not match"
    )
    monkeypatch.undo()
    wait_until(lambda: follower.damage is None, PATIENCE)
    follower.wait_read_all()
    assert not any("damaged" in each for each in health.unready())
    follower.stop()
