"""The reads: parameters, answers and their service. May import `alerts`, `limits` and below, and the view."""
