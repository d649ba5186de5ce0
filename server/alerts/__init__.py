"""Budgets and quotas: found once, recorded, notified. May import `limits` and below, and the view."""
