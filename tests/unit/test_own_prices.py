"""Own prices: which entry holds, and what is said of a file that cannot be used."""

import hashlib
from pathlib import Path

import pytest

from processor.core.clock import parse_timestamp
from processor.core.events.prices.pricing import Pricer
from processor.core.events.prices.token_rates import Usage
from processor.settings import SettingsError, load
from server.prices import own_prices, price_lists, prices_setting
from server.prices.builtin import builtin_list
from server.prices.own_prices import PricesError
from server.settings import ServerSettings

FILE = b"""
[[price]]
model = "llama-*"
provider = "groq"
input = 0.5
output = "1.5"

[[price]]
model = ["llama-3", "Llama-4"]
input = 1
output = 2
cached = 0.25
cache_write = 1.25
reasoning = 3
tiers = [{ above = 1_000, input = 2, output = 4, cached = 0.5, cache_write = 2.5, reasoning = 6 }]

[[price]]
model = "llama-3"
from = 2026-05-01
until = 2026-06-01T00:00:00+02:00
input = 7.0000005
output = 8.0000015

[[price]]
model = "gpt-4o"
from = 2026-01-01
input = 0

[[price]]
model = "twice-*"
input = 1
output = 1

[[price]]
model = "twice-*"
from = 2026-05-01
input = 2
output = 2

[[price]]
model = "twice-?"
from = 2026-05-01
input = 3
output = 3

[[price]]
model = "written"
input = 0
cache_write = 1
cache_write_1h = "1.6000005"
output = 0
"""
ONE_EACH = Usage(1, 1)
APRIL, MAY, JUNE = "2026-04-20T00:00:00Z", "2026-05-01T00:00:00Z", "2026-05-31T22:00:00Z"


def cost(
    model: str, usage: Usage = ONE_EACH, at: str = APRIL, provider: str = "custom", raw: str | None = None
) -> int | None:
    pricer = Pricer([own_prices.parse("mine", FILE)])
    return pricer.quote(provider, raw, model, "chat", parse_timestamp(at), usage).cost


@pytest.mark.parametrize(
    ("model", "raw", "at", "expected"),
    [
        ("llama-9", "groq", APRIL, 2_000_000),
        ("LLAMA-9", " Groq", APRIL, 2_000_000),
        ("llama-9", "other", APRIL, None),
        ("llama-9", None, APRIL, None),
        ("llama-3", "groq", APRIL, 3_000_000),  # its very name goes before a glob
        ("llama-4", None, APRIL, 3_000_000),
        ("llama-3", None, "2026-04-30T23:59:59.999999Z", 3_000_000),
        ("llama-3", None, MAY, 7_000_000 + 8_000_002),  # half-even
        ("llama-3", None, "2026-05-31T21:59:59.999999Z", 7_000_000 + 8_000_002),
        ("llama-3", None, JUNE, 3_000_000),
        ("mixtral", None, APRIL, None),
        ("twice-a", None, APRIL, 2_000_000),
        ("twice-a", None, MAY, 4_000_000),  # the later date first, then the one that stands earlier
    ],
)
def test_which_price_holds(model: str, raw: str | None, at: str, expected: int | None) -> None:
    assert cost(model, at=at, raw=raw) == expected


def test_parts_and_tiers() -> None:
    parts = Usage(1_000, 100, 200, 100, 40)
    assert cost("llama-4", parts) == 700 * 10**6 + 50 * 10**6 + 125 * 10**6 + 60 * 2 * 10**6 + 120 * 10**6
    above = Usage(1_001, 100, 200, 100, 40)
    assert cost("llama-4", above) == 701 * 2 * 10**6 + 100 * 10**6 + 250 * 10**6 + 60 * 4 * 10**6 + 240 * 10**6


def test_what_is_kept_for_an_hour() -> None:
    assert cost("written", Usage(10, 0, cache_write=10, cache_write_1h=4)) == 6 * 1_000_000 + 4 * 1_600_000
    assert cost("llama-3", Usage(10, 0, cache_write=10)) == 12_500_000
    assert cost("llama-3", Usage(10, 0, cache_write=10, cache_write_1h=1)) is None  # it has no price there


def test_it_goes_before_the_built_in_list_while_it_is_in_force(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_bytes(FILE)
    pricer = price_lists.open_pricer(str(file))
    name = f"list:mine@{hashlib.sha256(FILE).hexdigest()[:12]}"

    def quote(at: str, output: int = 0) -> tuple[int | None, str | None]:
        found = pricer.quote("openai", None, "gpt-4o", "chat", parse_timestamp(at), Usage(1, output))
        return found.cost, found.source

    assert quote("2026-01-01T00:00:00Z") == (0, name)
    assert quote("2026-01-01T00:00:00Z", 1) == (
        None,
        None,
    )  # a part without a price is not looked up elsewhere
    assert quote("2025-12-31T23:59:59.999999Z") == (2_500_000, builtin_list().name)
    assert price_lists.open_pricer("off").lists == ()
    assert [each.name for each in price_lists.open_pricer("builtin").lists] == [builtin_list().name]


def test_it_says_which_prices_were_rounded() -> None:
    found = [(model.name, model.rounded) for _, _, model in own_prices.parse("mine", FILE).models() if model.rounded]
    assert sorted(found) == [("llama-3", ("input", "output")), ("written", ("cache_write_1h",))]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", r"needs tables \[\[price\]\]"),
        ("price = 3", r"needs tables \[\[price\]\]"),
        ("prices = []", r"unknown key 'prices'"),
        ("[[price]", "not TOML"),
        ("[[price]]\nmodel = 'm'\ninput = nan", "price 1 .'m'.: input must be dollars"),
        ("[[price]]\ninput = 1", "price 1: model must be a name or a glob"),
        ("[[price]]\nmodel = []\ninput = 1", "model must be a name or a glob"),
        ("[[price]]\nmodel = ''\ninput = 1", "model must be a name or a glob"),
        ("[[price]]\nmodel = 'm'", "price 1 .'m'.: no price"),
        (
            "[[price]]\nmodel = 'a'\ninput = 1\n[[price]]\nmodel = 'b'\ninput = -1",
            "price 2 .'b'.: input must be dollars",
        ),
        ("[[price]]\nmodel = 'm'\noutput = '1,5'", "output must be dollars"),
        ("[[price]]\nmodel = 'm'\noutput = true", "output must be dollars"),
        ("[[price]]\nmodel = 'm'\noutput = 1000000.1", "output must be dollars"),
        ("[[price]]\nmodel = 'm'\ninputs = 1", "unknown key 'inputs'; known are"),
        ("[[price]]\nmodel = 'm'\ninput = 1\nfrom = '2026-01-01'", "from must be a date or a time without quotes"),
        ("[[price]]\nmodel = 'm'\ninput = 1\nfrom = 2026-01-01\nuntil = 2026-01-01", "until must be later than from"),
        ("[[price]]\nmodel = 'm'\ninput = 1\nprovider = ''", "provider must be a name"),
        ("[[price]]\nmodel = 'm'\ninput = 1\ntiers = 3", "tiers must be a list"),
        ("[[price]]\nmodel = 'm'\ninput = 1\ntiers = [{ input = 3 }]", "tier 1: above must be a number"),
        ("[[price]]\nmodel = 'm'\ninput = 1\ntiers = [{ above = 5 }]", "tier 1: no price for input"),
        (
            "[[price]]\nmodel = 'm'\ninput = 1\ntiers = [{ above = 5, input = 1 }, { above = 5, input = 1 }]",
            "tier 2: above",
        ),
        ("[[price]]\nmodel = 'm'\ninput = 1\ntiers = [{ above = 5, inputs = 1 }]", "tier 1: unknown key 'inputs'"),
    ],
)
def test_a_file_that_cannot_be_used_is_told_where_it_is_wrong(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(PricesError, match=says):
        own_prices.parse("mine", text.encode())
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=f"SPENDSTREAM_PRICES: .*{says}"):
        load(ServerSettings, prices=str(file))


@pytest.mark.parametrize("value", ["on", "prices.json", "/nowhere/mine.toml", "a b.toml"])
def test_a_setting_that_names_no_list_is_refused(value: str, tmp_path: Path) -> None:
    (tmp_path / "a b.toml").write_bytes(FILE)
    with pytest.raises(SettingsError, match="SPENDSTREAM_PRICES"):
        load(ServerSettings, prices=str(tmp_path / value) if value == "a b.toml" else value)


def test_a_file_in_use_is_kept_as_it_was(tmp_path: Path) -> None:
    """So that processes that start later have the same prices, and an old version can be looked up."""
    file = tmp_path / "mine.toml"
    file.write_bytes(FILE)
    kept = prices_setting.keep(str(file), tmp_path / "data")
    assert prices_setting.keep(kept, tmp_path / "data") == kept
    file.write_bytes(FILE.replace(b"0.5", b"0.6"))
    other = prices_setting.keep(str(file), tmp_path / "data")
    assert Path(kept).read_bytes() == FILE
    names = [price_lists.open_pricer(each).lists[0].name for each in (kept, other)]
    assert names[0] == own_prices.parse("mine", FILE).name
    assert names[0] != names[1]
    assert [prices_setting.keep(each, tmp_path) for each in ("off", "builtin")] == ["off", "builtin"]
