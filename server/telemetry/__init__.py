"""Signals of the service itself: metrics, access log, traces. May import `tenancy`, `processes` and a middleware of
each API."""
