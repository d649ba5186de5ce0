"""Generated batches of events like those of an application, for HTTP and gRPC. The seed determines everything."""

import random
from typing import Final
from uuid import UUID

from processor.core.clock import format_timestamp
from processor.core.money import PICO, format_cost
from protos.spendstream.v1 import ingest_pb2 as pb

MODELS: Final = (
    # provider, model, operation, weight, dollars for a million tokens of input and of output
    ("openai", "gpt-4o", "chat", 30, 2.5, 10.0),
    ("openai", "gpt-4o-mini", "chat", 30, 0.15, 0.6),
    ("anthropic", "claude-sonnet-4", "chat", 20, 3.0, 15.0),
    ("google", "gemini-2.5-flash", "chat", 15, 0.3, 2.5),
    ("openai", "text-embedding-3-small", "embed", 5, 0.02, 0.0),
)
STATUSES: Final = (("success", 96), ("error", 2), ("rate_limited", 1), ("timeout", 1))
ENVIRONMENT: Final = "loadtest"


class Generator:
    """Makes events of `users` users, some of which send many more than others."""

    def __init__(self, users: int, seed: int | None = None) -> None:
        self._rng = random.Random(seed)  # noqa: S311 - no secret
        self._users = users
        self._weights = [model[3] for model in MODELS]

    def json(self, count: int, now: int) -> bytes:
        """Return a body of NDJSON; `now` is in microseconds."""
        return b"".join(self._line(now) for _ in range(count))

    def proto(self, count: int, now: int) -> pb.IngestRequest:
        """Return the same as a protobuf message."""
        return pb.IngestRequest(events=(self._event(now) for _ in range(count)))

    def _make(self) -> tuple[str, str, int, int, int, str, int, str]:
        rng = self._rng
        (model,) = rng.choices(range(len(MODELS)), self._weights)
        inputs = int(rng.lognormvariate(6.5, 1.0))
        outputs = int(rng.lognormvariate(5.0, 0.8)) if MODELS[model][5] else 0
        cached = inputs // 2 if rng.random() < 0.3 else 0
        pico = int((inputs * MODELS[model][4] + outputs * MODELS[model][5]) * PICO / 1_000_000)
        (status,) = rng.choices([name for name, _ in STATUSES], [weight for _, weight in STATUSES])
        user = int(self._users * rng.random() ** 3)
        event_id = str(UUID(int=rng.getrandbits(128), version=4))
        return event_id, f"loadtest-{user:06d}", model, inputs, outputs, status, cached, format_cost(pico)

    def _line(self, now: int) -> bytes:
        event_id, user, model, inputs, outputs, status, cached, cost = self._make()
        provider, name, operation, *_ = MODELS[model]
        latency = outputs * 12 + 180
        return (
            f'{{"event_id":"{event_id}","trace_id":"{event_id[:13]}","span_id":"{event_id[-12:]}",'
            f'"timestamp":"{format_timestamp(now - now % 1000)}","provider":"{provider}","model":"{name}",'
            f'"operation":"{operation}","latency_ms":{latency},"ttft_ms":180,"input_tokens":{inputs},'
            f'"output_tokens":{outputs},"cached_tokens":{cached},"cost_usd":{cost},"status":"{status}",'
            f'"stream":true,"environment":"{ENVIRONMENT}","user_id":"{user}","sdk_version":"loadtest"}}\n'
        ).encode()

    def _event(self, now: int) -> pb.Event:
        event_id, user, model, inputs, outputs, status, cached, cost = self._make()
        provider, name, operation, *_ = MODELS[model]
        return pb.Event(
            event_id=event_id,
            trace_id=event_id[:13],
            span_id=event_id[-12:],
            timestamp=format_timestamp(now - now % 1000),
            provider=provider,
            model=name,
            operation=operation,
            latency_ms=outputs * 12 + 180,
            ttft_ms=180,
            input_tokens=inputs,
            output_tokens=outputs,
            cached_tokens=cached,
            cost_usd=cost,
            status=status,
            stream=True,
            environment=ENVIRONMENT,
            user_id=user,
            sdk_version="loadtest",
        )
