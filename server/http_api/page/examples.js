// What a newcomer sends first: the same event by curl, from Python and over OpenTelemetry.

/** A curl command that sends one event. */
export function exampleCurl() {
  const event = {
    event_id: crypto.randomUUID?.() ?? "550e8400-e29b-41d4-a716-446655440001",
    trace_id: "first",
    span_id: "first",
    timestamp: new Date().toISOString(),
    provider: "openai",
    model: "gpt-4o",
    operation: "chat",
    latency_ms: 843,
    input_tokens: 512,
    output_tokens: 128,
    cost_usd: 0.0034,
    status: "success",
    stream: false,
    environment: "production",
    sdk_version: "1.0.0",
    user_id: "first-user",
  };
  const head = `curl -X POST ${location.origin}/v1/ingest \\\n  -H "x-api-key: lqt_your_api_key_here" \\\n  -H "Content-Type: application/x-ndjson" \\\n`;
  return `${head}  --data-binary '${JSON.stringify(event)}'`;
}

export const EXAMPLE_PYTHON = `import json, urllib.request, uuid
from datetime import datetime, UTC

event = {
    "event_id": str(uuid.uuid4()), "trace_id": "first", "span_id": "first",
    "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    "provider": "openai", "model": "gpt-4o", "operation": "chat", "latency_ms": 843,
    "input_tokens": 512, "output_tokens": 128, "cost_usd": 0.0034, "status": "success",
    "stream": False, "environment": "production", "sdk_version": "1.0.0", "user_id": "first-user",
}
request = urllib.request.Request("${location.origin}/v1/ingest", json.dumps(event).encode(),
    {"x-api-key": "lqt_your_api_key_here", "Content-Type": "application/x-ndjson"})
print(urllib.request.urlopen(request).read())`;

export const EXAMPLE_OTLP = `export OTEL_EXPORTER_OTLP_ENDPOINT=${location.origin}
export OTEL_EXPORTER_OTLP_HEADERS=x-api-key=lqt_your_api_key_here
export OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf
export OTEL_METRICS_EXPORTER=none OTEL_LOGS_EXPORTER=none
# then start your program with its GenAI instrumentation, for example opentelemetry-instrument python app.py`;

/** A request as curl, the key as a placeholder. */
export function asCurl(path) {
  return `curl -H "x-api-key: lqt_your_api_key_here" '${location.origin}${path.replaceAll("'", "%27")}'`;
}
