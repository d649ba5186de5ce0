"""Leases of a monthly quota: how several API processes share what is left of it. May import the log and the core."""
