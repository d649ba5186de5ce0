"""Everything that says "not now": quotas, rates, memory, cardinality, pacing. May import `tenancy` and below."""
