"""Records what real libraries send: `python -m tools.record_spans [NAME...]` writes tests/otlp_spans/.

Each library runs as its users run it, against a stand-in for the provider, and sends to a receiver of this machine. Of
each there are two files: NAME-VERSION.json is what was sent, as one OTLP JSON body; NAME-VERSION.calls.json has the
calls that the stand-in answered, which is what is to be counted. Ids and times are made the same in every recording,
and what names this machine is left out.
"""

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.support.model_api import ModelApi, model_api
from tests.support.otlp import JsonObject, spans_of
from tests.support.otlp_receiver import OtlpReceiver, otlp_receiver
from tools.otlp_clients import NoClients, javascript_client, python_client

SPANS: Final = Path(__file__).resolve().parent.parent / "tests" / "otlp_spans"
BEGIN_NS: Final = 1_776_679_200_000_000_000
"""2026-04-20T10:00:00Z: the first time in every recording; each later one is a millisecond after the one before."""
LEFT_OUT: Final = re.compile(r"^(host|process|os|service\.instance|container)\.")
"""Attributes that name this machine or process."""
UUID: Final = re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b")
TIMES: Final = re.compile(r"time_to_first|msTo|PerSecond|msPer")
"""Attributes that are measured anew in each run."""
TRACEBACK: Final = re.compile(r"Traceback \(most recent call last\).*", re.DOTALL)
"""What is left out of exceptions: it names files of this machine."""
CUT: Final = 600
"""Characters of a text that are kept."""
PATIENCE: Final = 180.0
"""Seconds for a client to end."""


@dataclass(frozen=True)
class Recording:
    """One run of a library."""

    name: str
    program: str
    """Its name in app.py or app.mjs, and what else it is told."""
    package: str
    """Whose version is in the file's name."""
    variables: Mapping[str, str] = field(default_factory=dict)
    is_javascript: bool = False
    is_older: bool = False

    def command(self) -> list[str]:
        """What runs its program. Raises `NoClients`."""
        client = javascript_client if self.is_javascript else python_client
        return [*client(is_older=self.is_older), *self.program.split()]


LATEST: Final = {
    "OTEL_SEMCONV_STABILITY_OPT_IN": "gen_ai_latest_experimental",
    "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "SPAN_ONLY",
}
ALONE: Final = {"ANTHROPIC_OPEN_TELEMETRY": "false"}
"""Else Anthropic's library makes a span of its own beside the instrumentation's."""

RECORDINGS: Final = (
    Recording("otel-openai-v2", "otel-openai-v2", "opentelemetry-instrumentation-openai-v2", is_older=True),
    Recording(
        "otel-openai-v2-latest", "otel-openai-v2", "opentelemetry-instrumentation-openai-v2", LATEST, is_older=True
    ),
    Recording("otel-genai-openai", "otel-genai-openai", "opentelemetry-instrumentation-genai-openai", LATEST),
    Recording("openinference-openai", "openinference-openai", "openinference-instrumentation-openai"),
    Recording("openai-twice", "openai-twice", "openinference-instrumentation-openai", LATEST),
    Recording("anthropic-sdk", "anthropic-sdk", "anthropic"),
    Recording("openinference-anthropic-and-sdk", "openinference-anthropic", "openinference-instrumentation-anthropic"),
    Recording("openinference-anthropic", "openinference-anthropic", "openinference-instrumentation-anthropic", ALONE),
    Recording("openinference-google-genai", "openinference-google-genai", "openinference-instrumentation-google-genai"),
    Recording("openllmetry-openai", "openllmetry-openai", "opentelemetry-instrumentation-openai"),
    Recording("openllmetry-anthropic", "openllmetry-anthropic", "opentelemetry-instrumentation-anthropic", ALONE),
    Recording("traceloop-sdk", "traceloop-sdk", "traceloop-sdk"),
    Recording("openinference-langchain", "openinference-langchain", "openinference-instrumentation-langchain"),
    Recording(
        "openinference-langchain-and-openai",
        "openinference-langchain",
        "openinference-instrumentation-langchain",
        {"BOTH_INSTRUMENTED": "1"},
    ),
    Recording("openinference-llama-index", "openinference-llama-index", "openinference-instrumentation-llama-index"),
    Recording(
        "openinference-openai-agents", "openinference-openai-agents", "openinference-instrumentation-openai-agents"
    ),
    Recording("pydantic-ai", "pydantic-ai", "pydantic-ai-slim"),
    Recording("openai-below-pydantic-ai", "pydantic-ai", "pydantic-ai-slim", {**LATEST, "BOTH_INSTRUMENTED": "1"}),
    Recording("vercel-ai", "vercel-ai", "ai", is_javascript=True),
    *(
        Recording(f"vercel-ai{version}-{name}", f"{version} {name}", f"ai-{version}", is_javascript=True, is_older=True)
        for version in (4, 5)
        for name in ("anthropic", "google", "openai")
    ),
)


def client_environment(models: ModelApi, endpoint: str, given: Mapping[str, str]) -> dict[str, str]:
    """Of a client that calls `models` and sends to `endpoint`, whatever this process's own says of OpenTelemetry."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "PYTHON"))}
    usual = {"OTEL_SERVICE_NAME": "assistant", "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}
    # No proxy is to stand between programs of this machine, and no library is to call home.
    alone = {"NO_PROXY": "*", "OPENAI_AGENTS_DISABLE_TRACING": "0", "TRACELOOP_TELEMETRY": "false"}
    return {**kept, **usual, **alone, "MODEL_API": models.url, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, **given}


async def run_client(command: Sequence[str], environment: Mapping[str, str], patience: float = PATIENCE) -> str:
    """Run a client to its end; returns what it said. Raises `RuntimeError` where it fails or is late."""
    running = await asyncio.create_subprocess_exec(
        *command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
    )
    try:
        said, _ = await asyncio.wait_for(running.communicate(), patience)
    except TimeoutError:
        running.kill()
        await running.wait()
        raise RuntimeError(f"{' '.join(command)} was late") from None
    if running.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {running.returncode}:\n{said.decode()[-4000:]}")
    return said.decode()


def version_of(recording: Recording) -> str:
    """Return the version of the package that the recording is named after. Raises `NoClients`."""
    command = recording.command()
    if recording.is_javascript:
        package = Path(command[1]).parent / "node_modules" / recording.package / "package.json"
        return str(json.loads(package.read_text())["version"])
    asked = f"import importlib.metadata; print(importlib.metadata.version({recording.package!r}))"
    return subprocess.run([command[0], "-c", asked], capture_output=True, text=True, check=True).stdout.strip()


# --- the same in every recording ------------------------------------------------------------------------------------


def settle(bodies: Sequence[JsonObject], ports: Sequence[int]) -> JsonObject:
    """All requests as one body, without what differs from run to run or names this machine."""
    resources = [resource for body in bodies for resource in body.get("resourceSpans", [])]
    made: JsonObject = json.loads(_anonymous(json.dumps({"resourceSpans": resources}), ports))
    _settle_attributes(made)
    spans = sorted(spans_of(made), key=lambda span: int(span["startTimeUnixNano"]))
    _settle_ids(spans)
    _settle_times(spans)
    return made


def _anonymous(text: str, ports: Sequence[int]) -> str:
    for port in ports:
        text = re.sub(rf"\b{port}\b", "443", text)
    known: dict[str, str] = {}
    return UUID.sub(lambda found: known.setdefault(found[0], f"00000000-0000-4000-8000-{len(known):012}"), text)


def _settle_attributes(node: Any) -> None:
    if isinstance(node, list):
        for each in node:
            _settle_attributes(each)
    elif isinstance(node, dict):
        if "attributes" in node:
            node["attributes"] = [each for each in node["attributes"] if not LEFT_OUT.match(each["key"])]
        for name in ("stringValue", "message"):
            if name in node:
                node[name] = TRACEBACK.sub("Traceback: cut", str(node[name]))
        if TIMES.search(str(node.get("key"))):
            node["value"] = {"doubleValue": 0.25}
        if len(node.get("stringValue", "")) > CUT:
            node["stringValue"] = node["stringValue"][:CUT] + "..."
        for each in node.values():
            _settle_attributes(each)


def _settle_ids(spans: Sequence[JsonObject]) -> None:
    known: dict[str, dict[str, str]] = {"traceId": {}, "spanId": {}}
    for span in spans:
        for name, width in (("traceId", 32), ("spanId", 16)):
            known[name].setdefault(span[name], f"{len(known[name]) + 1:0{width}x}")
    for span in spans:
        for holder in [span, *span.get("links", [])]:
            for name, kind in (("traceId", "traceId"), ("spanId", "spanId"), ("parentSpanId", "spanId")):
                if holder.get(name):
                    holder[name] = known[kind].get(holder[name], "f" * len(holder[name]))


def _settle_times(spans: Sequence[JsonObject]) -> None:
    holders: dict[int, list[tuple[JsonObject, str]]] = defaultdict(list)
    for span in spans:
        for holder in [span, *span.get("events", [])]:
            for name in ("startTimeUnixNano", "endTimeUnixNano", "timeUnixNano"):
                if name in holder:
                    holders[int(holder[name])].append((holder, name))
    for number, at in enumerate(sorted(holders)):
        for holder, name in holders[at]:
            holder[name] = str(BEGIN_NS + number * 1_000_000)


def as_text(body: JsonObject) -> str:
    """One attribute a line: short, and a changed one is a changed line."""
    text = json.dumps(body, indent=1, ensure_ascii=False)
    return re.sub(r"\{\s+\"key\": (.*),\s+\"value\": \{\s+(.*)\s+\}\s+\}", r'{"key": \1, "value": {\2}}', text) + "\n"


# --- the program ----------------------------------------------------------------------------------------------------


async def record(recording: Recording, models: ModelApi, receiver: OtlpReceiver) -> None:
    """Run it and write its two files."""
    command = recording.command()
    models.calls.clear()
    receiver.bodies.clear()
    variables = client_environment(models, receiver.http, recording.variables)
    await run_client(command, variables)
    ports = [models.port, int(receiver.http.rpartition(":")[2])]
    name = f"{recording.name}-{version_of(recording)}"
    for old in SPANS.glob(f"{recording.name}-[0-9]*"):
        old.unlink()
    body = settle(receiver.bodies, ports)
    (SPANS / f"{name}.json").write_text(as_text(body))
    (SPANS / f"{name}.calls.json").write_text(models.as_json())
    print(f"{name}: {len(models.calls)} calls, {len(spans_of(body))} spans")


async def record_all(names: Sequence[str]) -> int:
    """Record these, or all without names; return the exit code."""
    SPANS.mkdir(exist_ok=True)
    failed = 0
    async with model_api() as models, otlp_receiver() as receiver:
        for recording in RECORDINGS:
            if names and recording.name not in names:
                continue
            try:
                await record(recording, models, receiver)
            except (RuntimeError, NoClients) as error:
                failed = 1
                print(f"{recording.name}: {error}", file=sys.stderr)
    return failed


def main() -> int:
    """Record what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m tools.record_spans")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these; all without")
    names = parser.parse_args().names
    known = [recording.name for recording in RECORDINGS]
    if unknown := sorted({*names} - {*known}):
        parser.error(f"no recording is called {', '.join(unknown)}; there are {', '.join(known)}")
    return asyncio.run(record_all(names))


if __name__ == "__main__":
    sys.exit(main())
