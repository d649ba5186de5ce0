"""What an application of Faust does before it starts."""

from pathlib import Path
from typing import Any

import pytest
import venusian  # type: ignore[import-untyped]
from mode.utils import imports

from processor.log import faust_app
from processor.log.embedded.transport import Transport
from processor.log.topics import EVENTS
from processor.settings import Settings


async def test_nothing_is_searched_for_agents_or_extensions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def agent(stream: Any) -> None:
        """It is not started here."""

    async def task() -> None:
        """Nor is this."""

    found = faust_app.find_log(Settings(data_dir=tmp_path, partitions=3))
    for module, name in ((venusian, "getFrameInfo"), (imports, "entry_points")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("it takes as long as all else together"))
    app = faust_app.make_app("group", found, "faust", 0.5)
    app.add_agent("group.tables", faust_app.topic_of(app, EVENTS, 3), agent)
    app.add_task(task)
    assert [(name, each.fun) for name, each in app.agents.items()] == [("group.tables", agent)]
    assert isinstance(app.transport, Transport)
    assert isinstance(app.producer_transport, Transport)
