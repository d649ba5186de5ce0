"""OTLP: spans into events, whatever wire they come by. May import `ingest` and below."""
