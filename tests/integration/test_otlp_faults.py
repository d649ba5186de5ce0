"""Real OTLP clients against a server that is killed, refuses and loses answers: what they call counts once.

`OTLP_KILLS` is how often the server is killed for each protocol (default 4); `make chaos ARGS="--only otlp"` does it at
length.
"""

import os
from pathlib import Path
from typing import Final

import pytest

from tests.chaos.otlp import COLLECTED, DIRECT, run_wire
from tests.support.model_api import ModelApi

pytestmark = [pytest.mark.slow, pytest.mark.otlp_clients]

KILLS: Final = int(os.environ.get("OTLP_KILLS", "4"))


@pytest.mark.timeout(600 + 20 * KILLS)
@pytest.mark.parametrize("wire", [*DIRECT, *(pytest.param(wire, marks=pytest.mark.collector) for wire in COLLECTED)])
async def test_every_call_counts_once_over_kills_refusals_and_lost_answers(
    tmp_path: Path, models: ModelApi, wire: str
) -> None:
    outcome = await run_wire(wire, KILLS, tmp_path, models)
    assert outcome.kills == KILLS, outcome.said
    assert {"refuse-429", "refuse-503", "lose-answer"} <= set(outcome.met) or KILLS < 3
    assert outcome.counted == outcome.called, outcome.said
