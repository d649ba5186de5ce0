"""Many spans of calls to models, as a real library sends them, with ids and tokens of their own."""

import json
import random
from collections.abc import Iterator
from copy import deepcopy
from typing import Any, Final

from google.protobuf.json_format import ParseDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.otlp import spans_of, with_binary_ids
from tools.record_spans import SPANS

RECORDING: Final = "openinference-openai-[0-9]*[0-9].json"


def template() -> Any:
    """A request with one span: the first call that this library reported."""
    (path,) = SPANS.glob(RECORDING)
    body = json.loads(path.read_text())
    resource = body["resourceSpans"][0]
    scope = resource["scopeSpans"][0]
    only = {**resource, "scopeSpans": [{**scope, "spans": [spans_of(body)[0]]}]}
    return ParseDict(with_binary_ids({"resourceSpans": [only]}), ExportTraceServiceRequest())


def requests(count: int, size: int, seed: int = 1) -> Iterator[bytes]:
    """`count` bodies in protobuf of `size` spans each, of which no two are alike."""
    rng = random.Random(seed)
    made = template()
    spans = made.resource_spans[0].scope_spans[0].spans
    first = deepcopy(spans[0])
    del spans[:]
    spans.extend([first] * size)
    for _ in range(count):
        for span in spans:
            span.trace_id, span.span_id = rng.randbytes(16), rng.randbytes(8)
            started = 1_776_679_200_000_000_000 + rng.randrange(86_400_000_000_000)
            span.start_time_unix_nano, span.end_time_unix_nano = started, started + rng.randrange(5_000_000_000)
        yield made.SerializeToString()
