"""Signals of the service itself: metrics, access log, traces. May import `tenancy` and `processes`."""
