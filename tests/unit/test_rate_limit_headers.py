from server.limits.rate_limit_headers import MAX_INTEGER, Allowance, headers

NOW = 1_790_000_000_000_000


def test_both_limits() -> None:
    found = headers(
        [
            Allowance("requests", 600, 1, NOW + 29_000_001, 60),
            Allowance("events", 10_000, 10_007, NOW + 86_400_000_000),
        ],
        NOW,
    )
    assert found == {
        "RateLimit-Policy": '"requests";q=600;w=60, "events";q=10000',
        "RateLimit": '"requests";r=599;t=30, "events";r=0;t=86400',
    }


def test_numbers_stay_within_what_a_field_may_hold() -> None:
    found = headers([Allowance("events", 2**53 - 1, 0, NOW - 1)], NOW)
    assert found == {"RateLimit-Policy": f'"events";q={MAX_INTEGER}', "RateLimit": f'"events";r={MAX_INTEGER};t=0'}
