"""Leases of a monthly quota: how several front ends share what is left of it without ever going over it."""
