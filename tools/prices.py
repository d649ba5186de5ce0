"""The built-in price list, made of the data of the package genai-prices (MIT): `python -m tools.prices`.

It fetches the pinned version (of `server/prices/genai_prices.json`) with pip, reads its data without running it, and
compiles what prices tokens into whole picodollars. `--upgrade` takes the newest version, `--version` another one.
`--check` does not fetch: the file must be what this program writes, and every rule and every rate sound.
"""

import argparse
import ast
import datetime
import hashlib
import operator
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import Any, Final

import msgspec

from processor.core.events.prices import name_rules
from processor.core.events.prices.price_list import DatedRates, Model, PriceList, Provider
from processor.core.events.prices.token_rates import Rates

ROOT: Final = Path(__file__).resolve().parent.parent
FILE: Final = ROOT / "server" / "prices" / "genai_prices.json"
PACKAGE: Final = "genai-prices"
SOURCE: Final = "https://github.com/pydantic/genai-prices"

PARTS: Final = {
    "input_mtok": "input",
    "cache_read_mtok": "cached",
    "cache_write_mtok": "cache_write",
    "cache_write_1h_mtok": "cache_write_1h",
    "output_mtok": "output",
    "output_reasoning_mtok": "reasoning",
}
"""The prices that are carried."""

ASIDE: Final = frozenset(
    {
        *("web_searches_kcount", "storage_searches_kcount"),
        *("input_audio_mtok", "input_image_mtok", "input_video_mtok"),
        *("cache_audio_read_mtok", "cache_image_read_mtok"),
    }
)
"""Prices of what an event does not count by itself, which are left out of a model that is priced by tokens all the
same. A model with any other price (by request, hour, page or character; answers in sound or pictures) is not priced."""

MAKES_MEDIA: Final = re.compile("transcribe|image|audio|realtime").search
"""Names of models whose prompts are mostly sound or pictures: text prices would be wrong for them."""

Node = dict[str, Any]
"""A call in the data: its arguments by name, and what is called under `type`."""


# --- read ------------------------------------------------------------------------------------------------------------


def read(text: str) -> list[Node]:
    """The providers in the source text of `genai_prices/data.py`, of which nothing is run."""
    for statement in ast.parse(text).body:
        if isinstance(statement, ast.AnnAssign) and ast.unparse(statement.target) == "providers" and statement.value:
            found: list[Node] = _value(statement.value)
            return found
    raise ValueError("the package has no list of providers")


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant():
            return node.value
        case ast.List():
            return list(map(_value, node.elts))
        case ast.Dict():
            return {_value(key): _value(value) for key, value in zip(node.keys, node.values, strict=True) if key}
        case ast.Call(func=ast.Name() | ast.Attribute(value=ast.Name(id="datetime"))):
            return _call(ast.unparse(node.func), node)
        case _ if ast.unparse(node) == "datetime.UTC":
            return datetime.UTC
    raise ValueError(f"line {node.lineno} of the data is not plain data: {ast.unparse(node)[:80]}")


def _call(name: str, node: ast.Call) -> Any:
    values = list(map(_value, node.args))
    named = {each.arg: _value(each.value) for each in node.keywords if each.arg}
    if name == "Decimal":
        return Decimal(*values)
    if name in {"datetime.date", "datetime.time"}:
        return operator.attrgetter(name.partition(".")[2])(datetime)(*values, **named)
    if values:
        raise ValueError(f"line {node.lineno} of the data has arguments without a name")
    return {"type": name, **named}


# --- compile ---------------------------------------------------------------------------------------------------------


def compile_list(providers: Iterable[Node], version: str, date: str, about: dict[str, str]) -> PriceList:
    """The list as it is stored."""
    return PriceList(PACKAGE, version, date, tuple(map(_provider, providers)), about)


def _provider(node: Node) -> Provider:
    return Provider(
        node["id"],
        tuple(map(_model, node["models"])),
        _rule(node.get("model_match")),
        _rule(node.get("provider_match")),
        tuple(node.get("fallback_model_providers") or ()),
    )


def _model(node: Node) -> Model:
    sent = node["prices"]
    dated = sent if isinstance(sent, list) else [{"prices": sent}]
    prices = [{name: price for name, price in each["prices"].items() if name != "type"} for each in dated]
    match = _rule(node["match"]) or "="
    if not all(_is_by_token(node["id"], each) for each in prices):
        return Model(node["id"], match)
    rounded = sorted({PARTS[name] for each in prices for name in each if name in PARTS and _is_rounded(each[name])})
    rates = tuple(_dated(each.get("constraint"), found) for each, found in zip(dated, prices, strict=True))
    return Model(node["id"], match, _always_first(rates), tuple(rounded))


def _is_by_token(model: str, prices: Node) -> bool:
    media = {name for name in prices if re.match("input_(audio|image|video)_mtok", name)}
    return (
        bool(prices.keys() & PARTS.keys())
        and prices.keys() <= PARTS.keys() | ASIDE
        and not (media and MAKES_MEDIA(model.lower()))
    )


def _always_first(rates: tuple[DatedRates, ...]) -> tuple[DatedRates, ...]:
    """Where none of several prices holds at a time, the package takes the first one."""
    first = rates[0]
    always = DatedRates(first.tiers)
    return rates if first == always else (always, *rates)


def _dated(constraint: Node | None, prices: Node) -> DatedRates:
    tiers = _tiers(prices)
    if constraint is None:
        return DatedRates(tiers)
    if constraint["type"] == "StartDateConstraint":
        day = datetime.datetime.combine(constraint["start_date"], datetime.time(), datetime.UTC)
        return DatedRates(tiers, start=int(day.timestamp()) * 1_000_000)
    if constraint["type"] == "TimeOfDateConstraint":
        return DatedRates(tiers, hours=(_minute(constraint["start_time"]), _minute(constraint["end_time"])))
    raise ValueError(f"a price holds on a condition that is not known: {constraint['type']}")


def _minute(time: datetime.time) -> int:
    if time.tzinfo not in {None, datetime.UTC} or time.second:
        raise ValueError(f"a price begins at a time that is no whole minute (UTC): {time}")
    return time.hour * 60 + time.minute


def _tiers(prices: Node) -> tuple[Rates, ...]:
    steps = sorted({-1, *(above for name in prices if name in PARTS for above, _ in _steps(prices[name]))})
    return tuple(
        Rates(above, **{PARTS[name]: _rate(_at(price, above)) for name, price in prices.items() if name in PARTS})
        for above in steps
    )


def _steps(price: Any) -> Iterator[tuple[int, Decimal]]:
    """From how many input tokens on which price holds."""
    if isinstance(price, Decimal):
        yield -1, price
    else:
        yield -1, price["base"]
        yield from sorted((tier["start"], tier["price"]) for tier in price["tiers"])


def _at(price: Any, above: int) -> Decimal:
    return [found for start, found in _steps(price) if start <= above][-1]


def _rate(price: Decimal) -> int:
    if price < 0:
        raise ValueError(f"a price is negative: {price}")
    return int((price * 10**6).quantize(Decimal(1), ROUND_HALF_EVEN))


def _is_rounded(price: Any) -> bool:
    return any(_rate(found) != found * 10**6 for _, found in _steps(price))


def _rule(clause: Node | None) -> name_rules.Rule | None:
    if clause is None:
        return None
    match clause["type"]:
        case "ClauseEquals":
            return f"={clause['equals'].lower()}"
        case "ClauseStartsWith":
            return f"^{clause['starts_with'].lower()}"
        case "ClauseEndsWith":
            return f"${clause['ends_with'].lower()}"
        case "ClauseContains":
            return f"*{clause['contains'].lower()}"
        case "ClauseRegex":
            return f"~{clause['regex']}"
        case "ClauseOr":
            return ["|", *map(_rule, clause["or_"])]
        case "ClauseAnd":
            return ["&", *map(_rule, clause["and_"])]
        case kind:
            raise ValueError(f"names are matched by a rule that is not known: {kind}")


# --- fetch, write, check ---------------------------------------------------------------------------------------------


def fetch(version: str | None) -> tuple[str, str, str, str]:
    """The version, the SHA-256 of the wheel, the source text of the data, and the license; None: the newest."""
    wanted = PACKAGE if version is None else f"{PACKAGE}=={version}"
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*pip, "--dest", folder, wanted], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        with zipfile.ZipFile(wheel) as opened:
            license_name = next(name for name in opened.namelist() if name.endswith("/LICENSE"))
            data, notice = opened.read("genai_prices/data.py").decode(), opened.read(license_name).decode()
        return wheel.name.split("-")[1], digest, data, notice


def encode(prices: PriceList) -> bytes:
    """The bytes of the file: a line a provider, so that a new version can be read as a difference."""
    providers = [msgspec.json.encode(each) for each in prices.providers]
    head = {"title": prices.title, "version": prices.version, "date": prices.date, "about": prices.about}
    return msgspec.json.encode(head)[:-1] + b',"providers":[\n' + b",\n".join(providers) + b"\n]}\n"


def faults(data: bytes) -> list[str]:
    """What is wrong with a file, as far as it can be told without its source."""
    prices = msgspec.json.decode(data, type=PriceList)
    found = [] if encode(prices) == data else ["it is not what this program writes"]
    for provider in prices.providers:
        rules = [provider.by_model, provider.by_name, *(model.match for model in provider.models)]
        for rule in rules:
            if rule is not None:
                name_rules.test_of(rule)
        for model in provider.models:
            for dated in model.rates:
                above = [rates.above for rates in dated.tiers]
                rates = [rate for each in dated.tiers for rate in msgspec.structs.astuple(each)[1:] if rate is not None]
                if above != sorted(set(above)) or above[0] != -1 or not rates or min(rates) < 0:
                    found.append(f"{provider.id} {model.name}: its rates are not sound")
    return found


def main() -> int:
    """Write the file, or check it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", help="this version of the package")
    parser.add_argument("--upgrade", action="store_true", help="its newest version")
    parser.add_argument("--check", action="store_true", help="only check the file")
    wanted = parser.parse_args()
    if wanted.check:
        found = faults(FILE.read_bytes())
        print("\n".join(f"{FILE.relative_to(ROOT)}: {fault}: run `make prices`" for fault in found))
        return bool(found)
    pinned = msgspec.json.decode(FILE.read_bytes(), type=PriceList) if FILE.exists() else None
    asked = wanted.version or (None if wanted.upgrade or pinned is None else pinned.version)
    version, digest, data, notice = fetch(asked)
    is_pinned = pinned is not None and pinned.version == version
    if pinned is not None and is_pinned and pinned.about["sha256"] != digest:
        print(f"{PACKAGE} {version} is not the file that it was: {digest}")
        return 1
    date = pinned.date if pinned is not None and is_pinned else datetime.datetime.now(datetime.UTC).date().isoformat()
    prices = compile_list(read(data), version, date, {"source": SOURCE, "sha256": digest, "license": notice})
    FILE.write_bytes(encode(prices))
    models = [model for provider in prices.providers for model in provider.models]
    print(f"{PACKAGE} {version}: {len(models)} models, {sum(bool(model.rates) for model in models)} with prices")
    return 0


if __name__ == "__main__":
    sys.exit(main())
