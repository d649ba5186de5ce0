"""Rows `kafka` and `kafka-one`: end to end over HTTP as for `e2e-http`, on a real Kafka broker (one node, KRaft).

Once with as many partitions as a log on Kafka has if nobody says otherwise, once with one, as the embedded log has. The
broker runs on the same cores. It is warm: a new one compiles itself for seconds, so it first gets other events.
"""

from typing import Any, Final

from tests.bench.context import Bench, outcome_of, quantiles
from tests.bench.end_to_end import Reader
from tests.bench.load_fresh import Stretch
from tests.bench.passes import Pass
from tests.bench.programs import Failed, Meter, Skipped
from tests.bench.results import RATE, Figures
from tests.support.traffic import BATCH
from tests.support.truth import GroundTruth
from tools.kafka import Broker
from tools.kafka_jars import NoKafka
from tools.tied_process import NotStarted

WARM_UP: Final = 8.0
"""Seconds."""


def kafka(bench: Bench) -> Figures:
    """gzip bodies of 100 events over 16 connections; raises `Skipped` where no broker can be had."""
    return _measure(bench, {})


def kafka_one(bench: Bench) -> Figures:
    """The same with one partition."""
    return _measure(bench, {"partitions": 1})


def _measure(bench: Bench, settings: dict[str, object]) -> Figures:
    events = bench.corpus.count
    with bench.fresh() as directory:
        broker = Broker(directory)
        try:
            broker.start()
        except NoKafka as why:
            raise Skipped(f"not measured: {why}") from None
        except NotStarted as why:
            raise Failed(str(why)) from None
        chosen = {"broker": broker.url, **settings}
        with broker, bench.server("serve", settings=chosen) as (server, said), bench.load("json", said) as load:
            before = _warm_up(bench, said)
            truth = before + bench.corpus.truth
            meter = Meter({**server.roles(), "broker": broker.pid, "loader": load.pid})
            load.tell("go")
            outcome = outcome_of(load, events)
            reader = Reader(said)
            seconds = reader.wait_for(truth.unique) - outcome.began
            used = meter.figures(events, seconds)
            reader.compare(truth)
            return {
                RATE: events / seconds,
                **used,
                "accepted, events/s": events / (outcome.ended - outcome.began),
                "last ack to visible, ms": 1e3 * (seconds - (outcome.ended - outcome.began)),
                **quantiles("acknowledged", outcome.latencies),
            }


def _warm_up(bench: Bench, said: dict[str, Any]) -> GroundTruth:
    """Some seconds of other events of the same users and models; what they come to, when it is in the tables."""
    made = Pass.make()
    with bench.fresh_loads(said, made) as [load]:
        load.tell(Stretch(seconds=WARM_UP))
        truth = made.truth(made.counted_first(load.outcome().accepted // BATCH))
    Reader(said).wait_for(truth.unique)
    return truth
