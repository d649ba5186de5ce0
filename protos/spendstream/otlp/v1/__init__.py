"""Version 1 of `spans.proto`: the trace messages of OpenTelemetry, opened as far as they are needed."""
