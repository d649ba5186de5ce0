"""Events of a request get their prices: those without a cost only, by what their senders said."""

from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.core.clock import parse_timestamp
from processor.core.events import codec, ndjson
from processor.core.events.codec import PayloadFormat
from processor.core.events.columns import SPAN_FLAG, UNPRICED_FLAG, Columns
from processor.core.events.ndjson import Lines
from processor.core.events.prices.price_list import DatedRates, Model, PriceList, Provider
from processor.core.events.prices.pricing import MAX_KNOWN, Pricer
from processor.core.events.prices.token_rates import Rates, Usage
from server.prices.builtin import builtin_list
from tests.support.events import ABSENT, Num, make_event, to_json_line, to_proto
from tests.support.examples import examples

NOW: Final = parse_timestamp("2026-04-21T00:00:00Z")
PAYLOADS: Final[list[PayloadFormat]] = ["json", "protobuf"]
FULL: Final = Rates(input=2, cached=3, cache_write=5, output=7, reasoning=11)


def a_list(version: str = "1", rates: Rates = FULL) -> PriceList:
    models = (
        Model("m", "=m", (DatedRates((rates,)),)),
        Model("bare", "=bare", (DatedRates((Rates(input=1, output=1),)),)),
    )
    providers = (
        Provider("openai", models),
        Provider("acme", (Model("m", "^m", (DatedRates((Rates(input=200, output=1),)),)),)),
    )
    return PriceList("test", version, "2026-04-20", providers)


PRICER: Final = Pricer([a_list()])


def an_event(**changes: Any) -> dict[str, Any]:
    return make_event(**{"model": "m", "input_tokens": 100, "output_tokens": 50, "cost_usd": ABSENT, **changes})


def encoded(payload: PayloadFormat, event: dict[str, Any]) -> bytes:
    return to_json_line(event) if payload == "json" else to_proto(event).SerializeToString()


def decoded(payload: PayloadFormat, *events: dict[str, Any]) -> Columns:
    found = codec.decode(payload, [encoded(payload, event) for event in events], "lenient", NOW)
    assert found.faults == []
    return found.columns


def priced(payload: PayloadFormat, *events: dict[str, Any], pricer: Pricer = PRICER) -> list[tuple[int, str | None]]:
    """The cost of each event, and where it is from."""
    columns = pricer.priced(decoded(payload, *events), payload)
    sources = [None, *columns.cost_sources]
    return [(cost, sources[source]) for cost, source in columns.rows[["cost", "cost_source"]].tolist()]


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("copies", [1, 2 * codec.FEW])
def test_what_came_without_a_cost_gets_one(payload: PayloadFormat, copies: int) -> None:
    """A cost that was sent is never changed, and a span costs nothing."""
    sent = an_event(cost_usd=Num("0.5"))
    span = an_event(kind="span", name="step")
    found = priced(payload, *([an_event(), sent, span, an_event(model="?")] * copies))
    assert found == [(550, "list:test@1"), (500_000_000_000, "client"), (0, None), (0, None)] * copies


@pytest.mark.parametrize("payload", PAYLOADS)
def test_all_parts_are_charged(payload: PayloadFormat) -> None:
    event = an_event(cached_tokens=20, cache_write_tokens=10, reasoning_tokens=30)
    assert priced(payload, event) == [(70 * 2 + 20 * 3 + 10 * 5 + 20 * 7 + 30 * 11, "list:test@1")]


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize(
    "changes",
    [
        {"input_tokens": ABSENT},
        {"output_tokens": ABSENT},
        {"input_tokens": ABSENT, "cached_tokens": 7},
        {"cached_tokens": 60, "cache_write_tokens": 50},
        {"reasoning_tokens": 51},
        {"operation": "image"},
        {"operation": "tts"},
        {"model": "bare", "cached_tokens": 1},
        {"model": "bare", "cache_write_tokens": 1},
        {"input_tokens": 2**53 - 1, "provider": "acme"},
        {"provider": "google"},
        {"provider": "nobody"},
    ],
)
def test_what_has_no_price_stays_unpriced(payload: PayloadFormat, changes: dict[str, Any]) -> None:
    event = an_event(**changes)
    columns = decoded(payload, event, an_event())
    found = PRICER.priced(columns, payload)
    assert found.rows["flags"].tolist() == [UNPRICED_FLAG, 0]
    assert found.rows[["cost", "cost_source"]].tolist()[0] == (0, 0)


@pytest.mark.parametrize("payload", PAYLOADS)
def test_counts_of_0_are_not_missing(payload: PayloadFormat) -> None:
    assert priced(payload, an_event(input_tokens=0, output_tokens=0)) == [(0, "list:test@1")]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_cached_tokens_beside_the_input_tokens_are_charged_as_counted(payload: PayloadFormat) -> None:
    """Of 10 and 30 cached ones the input is 40."""
    assert priced(payload, an_event(input_tokens=10, cached_tokens=30)) == [(10 * 2 + 30 * 3 + 50 * 7, "list:test@1")]


def test_numbers_may_be_written_in_other_ways() -> None:
    event = an_event(input_tokens=Num("1e2"), output_tokens=Num("50.0"), cache_write_tokens=Num("1e1"))
    assert priced("json", event) == [(90 * 2 + 10 * 5 + 50 * 7, "list:test@1")]


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize(
    ("changes", "cost"),
    [
        ({"provider": "acme"}, 20_050),
        ({"provider": "custom", "tags": {"provider.raw": "acme"}}, 20_050),
        ({"provider": "custom", "tags": {"provider.raw": "ACME ", "a": "b"}}, 20_050),
        ({"provider": "custom", "tags": {"provider.raw": "openai"}}, 550),
        ({"provider": ABSENT, "tags": {"provider.raw": "acme"}}, 20_050),
        ({"provider": "openai", "tags": {"provider.raw": "acme"}}, 550),
        ({"provider": "acme", "tags": {"provider.raw": "openai"}}, 20_050),
        ({"provider": "", "tags": {"provider.raw": "acme"}}, 0),
        ({"provider": "custom"}, 0),
    ],
)
def test_a_provider_is_what_the_sender_calls_it(payload: PayloadFormat, changes: dict[str, Any], cost: int) -> None:
    assert priced(payload, an_event(**changes))[0][0] == cost


@pytest.mark.parametrize("payload", PAYLOADS)
def test_the_digest_is_the_one_of_an_event_without_a_cost(payload: PayloadFormat) -> None:
    """So that a second copy under a newer list is no conflict."""
    columns = decoded(payload, an_event(), an_event(cached_tokens=3))
    newer = Pricer([a_list("2", Rates(input=9, cached=9, output=9))])
    digests = columns.rows["digest"].tolist()
    for pricer in (PRICER, newer, Pricer([])):
        assert pricer.priced(columns, payload).rows["digest"].tolist() == digests
    assert columns.rows["flags"].tolist() == [UNPRICED_FLAG] * 2  # those that came are as they were


def test_the_first_list_that_knows_the_model_decides() -> None:
    own = PriceList("own", "1", "", (Provider("openai", (Model("m", "=m", (DatedRates((Rates(input=1),)),)),)),))
    pricer = Pricer([own, a_list()])
    first, second, third = priced("json", an_event(output_tokens=0), an_event(), an_event(model="bare"), pricer=pricer)
    assert first == (100, "list:own@1")
    assert second == (0, None)  # output has no price there
    assert third == (150, "list:test@1")


def test_lists_say_why_there_is_no_price() -> None:
    at = NOW
    assert PRICER.quote("openai", None, "?", "chat", at, Usage(1, 1)).why == "unknown_model"
    assert PRICER.quote("openai", None, "m", "tts", at, Usage(1, 1)).why == "operation"
    assert PRICER.quote("openai", None, "bare", "chat", at, Usage(1, 1, 1)).why == "part_without_price"
    later = Model("m", "=m", (DatedRates((FULL,), start=at),))
    dated = Pricer([PriceList("t", "1", "", (Provider("openai", (later,)),))])
    assert dated.quote("openai", None, "m", "chat", at, Usage(1, 0)).cost == 2
    assert dated.quote("openai", None, "m", "chat", at - 1, Usage(1, 0)).why == "no_price"


def test_where_several_providers_could_be_meant_there_is_no_price() -> None:
    models = (Model("m", "=m", (DatedRates((FULL,)),)), Model("own", "=own", (DatedRates((FULL,)),)))
    providers = (
        Provider("one", models, by_model=["|", "=m"], by_name="*gate"),
        Provider("two", models, by_model=["|", "=m", "=own"], by_name="*gateway"),
    )
    pricer = Pricer([PriceList("t", "1", "", providers)])

    def found(raw: str | None, model: str) -> str | None:
        quote = pricer.quote("custom", raw, model, "chat", NOW, Usage(1, 0))
        assert (quote.cost, quote.why) in {(2, None), (None, "unknown_model")}
        return None if quote.found is None else quote.found.provider

    assert [found(None, "m"), found(None, "own")] == [None, "two"]
    assert [found("my-gateway", "m"), found("my-gate", "m"), found("two", "m")] == [None, "one", "two"]


def test_names_of_models_are_remembered_with_a_bound() -> None:
    pricer = Pricer([a_list()])
    for number in range(MAX_KNOWN + 10):
        assert pricer.find("openai", None, f"m{number}") == ()
    assert pricer.quote("openai", None, "m", "chat", NOW, Usage(1, 0)).cost == 2


def test_lines_of_a_body_are_priced_as_lines_by_themselves() -> None:
    events = [an_event(input_tokens=number, cache_write_tokens=number // 2) for number in range(30)]
    lines, _ = ndjson.split(b"\n".join(map(to_json_line, events)), 100)
    assert isinstance(lines, Lines)
    together = PRICER.priced(codec.decode("json", lines, "lenient", NOW).columns, "json")
    alone = [priced("json", event)[0][0] for event in events]
    assert together.rows["cost"].tolist() == alone


odd: Final[dict[str, st.SearchStrategy[Any]]] = {
    "provider": st.sampled_from(["openai", "anthropic", "acme", "custom", "", None, "groq"]),
    "model": st.sampled_from(["gpt-4o", "claude-sonnet-4-5", "deepseek-chat", "", "\u00fc", "GPT-4o", "x" * 256]),
    "input_tokens": st.sampled_from([ABSENT, None, 0, 1, 300_000, 2**53 - 1, Num("5.0")]),
    "output_tokens": st.sampled_from([ABSENT, None, 0, 1, 2**53 - 1, Num("1e2")]),
    "cached_tokens": st.sampled_from([ABSENT, 0, 1, 400_000, 2**53 - 1]),
    "cache_write_tokens": st.sampled_from([ABSENT, None, 0, 1, 2**53 - 1, Num("1e1")]),
    "reasoning_tokens": st.sampled_from([ABSENT, 0, 1, Num("3.0")]),
    "tags": st.sampled_from([ABSENT, {}, {"provider.raw": "groq"}, {"a": "b", "provider.raw": "\U0001f600"}]),
    "operation": st.sampled_from(["chat", "embed", "image", "tts", "custom", "dance", None]),
    "kind": st.sampled_from(["call", "span", "x", None]),
    "surprise": st.sampled_from([ABSENT, [[1]], {"input_tokens": 5}]),
}


@examples(100)
@given(st.lists(st.fixed_dictionaries({}, optional=odd), min_size=1, max_size=12), st.sampled_from(["json"]))
def test_whatever_is_taken_can_be_priced_and_each_as_if_alone(sent: list[Any], payload: PayloadFormat) -> None:
    events = [an_event(name="n", **changes) for changes in sent]
    pricer = Pricer([builtin_list()])
    found = codec.decode(payload, [encoded(payload, event) for event in events], "lenient", NOW)
    columns = pricer.priced(found.columns, payload)
    for place, record in enumerate(columns.records):
        alone = pricer.priced(codec.decode(payload, [record], "lenient", NOW).columns, payload)
        names = ["cost", "flags", "digest"]
        assert columns.rows[names].tolist()[place] == alone.rows[names].tolist()[0]
        assert columns.rows["flags"][place] != SPAN_FLAG or columns.rows["cost_source"][place] == 0
