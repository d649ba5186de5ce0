"""The built-in list: costs computed by hand, in picodollars, and which models it knows by which names."""

import subprocess
import sys
from pathlib import Path

import pytest

from processor.core.clock import parse_timestamp
from processor.core.events.prices.pricing import Pricer
from processor.core.events.prices.token_rates import Usage
from server.prices.builtin import builtin_list
from tools import prices as tool

USUAL = "2026-11-01T12:00:00Z"
PRICER = Pricer([builtin_list()])


def cost(
    provider: str, model: str, usage: Usage, at: str = USUAL, raw: str | None = None, operation: str = "chat"
) -> int | None:
    found = PRICER.quote(provider, raw, model, operation, parse_timestamp(at), usage)
    assert (found.cost is None) == (found.source is None)
    assert found.cost is None or found.source == builtin_list().name
    return found.cost


@pytest.mark.parametrize(
    ("provider", "model", "usage", "picodollars"),
    [
        # $2.50, cached $1.25, output $10: 600 * 2.5 + 400 * 1.25 + 200 * 10 millionths
        ("openai", "gpt-4o", Usage(1_000, 200, cached=400), 4_000_000_000),
        ("openai", "GPT-4o-2024-08-06", Usage(1_000, 200, cached=400), 4_000_000_000),
        ("openai", "gpt-4o-mini", Usage(1, 1), 150_000 + 600_000),
        # reasoning is output: 10 * 1.25 + 100 * 10
        ("openai", "gpt-5", Usage(10, 100, reasoning=80), 1_012_500_000),
        # up to 272,000 tokens $2.50 and $15, above that $5 and $22.50 for all of them
        ("openai", "gpt-5.4", Usage(272_000, 1), 680_000_000_000 + 15_000_000),
        ("openai", "gpt-5.4", Usage(272_001, 1), 1_360_005_000_000 + 22_500_000),
        ("openai", "text-embedding-3-small", Usage(1_000, 0), 20_000_000),
        # $3, read $0.30, written for 5 minutes $3.75, output $15
        (
            "anthropic",
            "claude-sonnet-4-5-20250929",
            Usage(10_000, 500, cached=6_000, cache_write=3_000),
            3_000_000_000 + 1_800_000_000 + 11_250_000_000 + 7_500_000_000,
        ),
        # the same, of which 1,000 written for an hour: $6
        (
            "anthropic",
            "claude-sonnet-4-5-20250929",
            Usage(10_000, 500, cached=6_000, cache_write=3_000, cache_write_1h=1_000),
            3_000_000_000 + 1_800_000_000 + 7_500_000_000 + 6_000_000_000 + 7_500_000_000,
        ),
        # $5, written for an hour $10, output $25
        (
            "anthropic",
            "claude-opus-4-5",
            Usage(7, 1, cache_write=7, cache_write_1h=7),
            70_000_000 + 25_000_000,
        ),
        # above 200,000 tokens $12 for an hour
        (
            "anthropic",
            "claude-sonnet-4-5",
            Usage(200_001, 0, cache_write=200_001, cache_write_1h=200_001),
            2_400_012_000_000,
        ),
        # above 200,000 tokens, those of the cache among them: $6, $0.60, $7.50, $22.50
        ("anthropic", "claude-sonnet-4-5", Usage(200_001, 1, cached=200_000), 6_000_000 + 120_000_000_000 + 22_500_000),
        ("anthropic", "claude-3-5-haiku-20241022", Usage(7, 3), 5_600_000 + 12_000_000),
        # $1.25 and $10, above 200,000 tokens $2.50 and $15; thoughts are output
        ("google", "gemini-2.5-pro", Usage(200_000, 1_000, reasoning=900), 250_000_000_000 + 10_000_000_000),
        ("google", "gemini-2.5-pro", Usage(200_001, 1_000, reasoning=900), 500_002_500_000 + 15_000_000_000),
        ("google", "gemini-2.5-flash", Usage(100, 10, cached=40), 18_000_000 + 1_200_000 + 25_000_000),
        # Google's platform offers Anthropic's models, too
        ("google", "claude-sonnet-4-5@20250929", Usage(10, 0), 30_000_000),
    ],
)
def test_costs_by_hand(provider: str, model: str, usage: Usage, picodollars: int) -> None:
    assert cost(provider, model, usage) == picodollars


@pytest.mark.parametrize(
    ("raw", "model", "usage", "picodollars"),
    [
        ("groq", "llama-3.3-70b-versatile", Usage(10, 10), 5_900_000 + 7_900_000),
        # reasoning is priced apart: $2, $8, $3
        (
            "openrouter",
            "perplexity/sonar-deep-research",
            Usage(10, 100, reasoning=60),
            20_000_000 + 320_000_000 + 180_000_000,
        ),
        # a price of 0.0833333333333333 dollars is 83,333 picodollars a token
        ("openrouter", "google/gemini-2.5-flash", Usage(10, 0, cache_write=10), 833_330),
        ("aws.bedrock", "anthropic.claude-3-haiku-20240307-v1:0", Usage(8, 0), 2_000_000),
        ("x_ai", "grok-3", Usage(10, 0), 30_000_000),
        ("togetherai", "meta-llama/Llama-3.3-70B-Instruct-Turbo", Usage(10, 10), 8_800_000 + 8_800_000),
        ("OpenAI", "gpt-4o", Usage(2, 0), 5_000_000),
        # without a name of the provider the model's own may say whose it is
        (None, "gpt-4o", Usage(2, 0), 5_000_000),
        (None, "claude-3-5-haiku-latest", Usage(10, 0), 8_000_000),
    ],
)
def test_providers_by_the_names_that_senders_have_for_them(
    raw: str | None, model: str, usage: Usage, picodollars: int
) -> None:
    assert cost("custom", model, usage, raw=raw) == picodollars


@pytest.mark.parametrize(
    ("at", "picodollars"),
    [
        ("2025-06-09T23:59:59.999999Z", 1_000_000_000 + 400_000_000),
        ("2025-06-10T00:00:00Z", 200_000_000 + 80_000_000),
        ("2025-06-10T01:00:00+02:00", 1_000_000_000 + 400_000_000),
        ("2001-01-01T00:00:00Z", 1_000_000_000 + 400_000_000),
    ],
)
def test_the_price_is_the_one_in_force_at_the_events_time(at: str, picodollars: int) -> None:
    assert cost("openai", "o3", Usage(100, 10), at) == picodollars


@pytest.mark.parametrize(
    ("at", "factor"),
    [
        ("00:29:59.999999", 1),
        ("00:30:00", 2),
        ("10:00:00", 2),
        ("16:29:59.999999", 2),
        ("16:30:00", 1),
        ("20:00:00", 1),
    ],
)
def test_prices_by_the_time_of_day(at: str, factor: int) -> None:
    """$0.135, cached $0.035, output $0.55, and twice that from 00:30 to 16:30 UTC."""
    found = cost("custom", "deepseek-chat", Usage(1_000, 50, cached=300), f"2026-11-01T{at}Z", raw="deepseek")
    assert found == factor * (94_500_000 + 10_500_000 + 27_500_000)


@pytest.mark.parametrize(
    ("provider", "raw", "model", "usage", "operation"),
    [
        ("openai", None, "gpt-4o-of-my-own", Usage(1, 1), "chat"),
        ("custom", None, "llama-3.3-70b-versatile", Usage(1, 1), "chat"),  # many offer it, at different prices
        ("custom", "my-proxy", "gpt-4o", Usage(1, 1), "chat"),
        ("custom", "huggingface/groq", "llama-3.3-70b-versatile", Usage(1, 1), "chat"),  # one of two
        ("openai", None, "gpt-5-pro", Usage(10, 1, cached=1), "chat"),
        ("openai", None, "gpt-4o", Usage(10, 1, cache_write=1), "chat"),
        ("openai", None, "gpt-4o", Usage(10, 1, cache_write=1, cache_write_1h=1), "chat"),
        ("anthropic", None, "claude-sonnet-4-5", Usage(10, 1, cache_write=1, cache_write_1h=2), "chat"),
        ("openai", None, "text-embedding-3-small", Usage(10, 1), "embed"),
        ("openai", None, "gpt-4o", Usage(10, 1, cached=11), "chat"),
        ("openai", None, "gpt-4o", Usage(1, 1), "image"),
        ("openai", None, "gpt-4o", Usage(1, 1), "tts"),
        ("openai", None, "gpt-4o-transcribe", Usage(1, 1), "chat"),
        ("openai", None, "gpt-image-1", Usage(1, 1), "chat"),
        ("openai", None, "tts-1", Usage(1, 0), "chat"),
        ("openai", None, "gpt-realtime", Usage(1, 1), "chat"),
        ("custom", "perplexity", "sonar", Usage(1, 1), "chat"),  # costs by request, too
        ("custom", "openrouter", "qwen3-14b:free", Usage(1, 1), "chat"),  # the list has no price for it
        ("openai", None, "gpt-4o", Usage(2**53 - 1, 1), "chat"),
    ],
)
def test_what_has_no_price_is_unpriced(
    provider: str, raw: str | None, model: str, usage: Usage, operation: str
) -> None:
    assert cost(provider, model, usage, raw=raw, operation=operation) is None


def test_the_most_that_a_call_may_cost() -> None:
    most = 400_000_000_000
    assert cost("openai", "gpt-4o", Usage(most, 0)) == 10**18
    assert cost("openai", "gpt-4o", Usage(most + 1, 0)) is None


def test_the_list_says_what_it_is() -> None:
    found = builtin_list()
    assert found.name == f"list:genai-prices@{found.version}"
    assert len(found.date) == len("2026-11-28")
    assert "Permission is hereby granted" in found.about["license"]


def test_it_says_which_prices_were_rounded() -> None:
    rounded = {
        (provider.id, model.name): model.rounded
        for provider in builtin_list().providers
        for model in provider.models
        if model.rounded
    }
    assert rounded["openrouter", "google/gemini-2.5-flash"] == ("cache_write",)
    assert ("openai", "gpt-4o") not in rounded


def test_the_file_is_what_the_program_writes() -> None:
    assert tool.faults(tool.FILE.read_bytes()) == []


def test_a_broken_file_is_found() -> None:
    data = tool.FILE.read_bytes()
    assert tool.faults(data.replace(b'"rates":', b' "rates":', 1)) == ["it is not what this program writes"]
    assert "openai gpt-4o: its rates are not sound" in tool.faults(
        data.replace(
            b'{"name":"gpt-4o","match":["|","=gpt-4o","=gpt-4o-2024-08-06","=gpt-4o-2024-11-20"],"rates":[{"tiers":[{',
            b'{"name":"gpt-4o","match":["|","=gpt-4o"],"rates":[{"tiers":[{"above":5,',
        )
    )


def test_it_is_small_and_loaded_without_its_source() -> None:
    """Its size decides how long a start takes to read it."""
    assert len(Path(tool.FILE).read_bytes()) < 500_000
    code = "import server.prices.builtin as b, sys; b.builtin_list(); print('genai_prices' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"


DATA = '''
providers: list[Provider] = [
    Provider(
        id='p',
        name='P',
        model_match=ClauseOr(or_=[ClauseStartsWith(starts_with='A-'), ClauseRegex(regex='^b[0-9]$')]),
        models=[
            ModelInfo(
                id='one',
                match=ClauseAnd(and_=[ClauseContains(contains='ONE'), ClauseEndsWith(ends_with='!')]),
                prices=[
                    ConditionalPrice(
                        constraint=StartDateConstraint(start_date=datetime.date(2026, 1, 2)),
                        prices=ModelPrice(
                            input_mtok=TieredPrices(base=Decimal('0.0000005'), tiers=[Tier(start=9, price=Decimal(3))]),
                            output_mtok=Decimal('2'),
                            cache_write_1h_mtok=TieredPrices(base=Decimal(4), tiers=[Tier(start=5, price=Decimal(8))]),
                        ),
                    ),
                    ConditionalPrice(
                        constraint=TimeOfDateConstraint(
                            start_time=datetime.time(23, 0, tzinfo=datetime.UTC), end_time=datetime.time(1, 0)
                        ),
                        prices=ModelPrice(input_mtok=Decimal('1.0000015')),
                    ),
                ],
            ),
            ModelInfo(id='hour', match=ClauseEquals(equals='Hour'), prices=ModelPrice(audio_hours=Decimal('1'))),
            ModelInfo(id='none', match=ClauseEquals(equals='none'), prices=ModelPrice()),
        ],
    )
]
'''  # fmt: skip


def test_the_data_is_compiled_and_never_run() -> None:
    (provider,) = tool.compile_list(tool.read(DATA), "1", "2026-11-28", {}).providers
    one, hour, none = provider.models
    assert (hour.rates, none.rates) == ((), ())
    assert provider.by_model == ["|", "^a-", "~^b[0-9]$"]
    assert one.match == ["&", "*one", "$!"]
    assert one.rounded == ("input",)
    always, dated, nightly = one.rates
    assert (always.start, always.tiers) == (None, dated.tiers)
    assert dated.start == parse_timestamp("2026-01-02T00:00:00Z")
    assert nightly.hours == (23 * 60, 60)
    low, middle, high = dated.tiers
    assert (middle.above, middle.input, middle.cache_write_1h) == (5, 0, 8_000_000)
    assert [each.cache_write_1h for each in dated.tiers] == [4_000_000, 8_000_000, 8_000_000]
    assert (low.above, low.input, low.output) == (-1, 0, 2_000_000)  # half of one: to the even neighbour
    assert (high.above, high.input, high.output) == (9, 3_000_000, 2_000_000)
    assert nightly.tiers[0].input == 1_000_002
    with pytest.raises(ValueError, match="not plain data"):
        tool.read("providers: list[Provider] = [open('x').read()]")
