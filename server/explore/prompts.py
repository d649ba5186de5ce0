"""`GET /v1/prompts`: the versions of prompts, by `prompt_hash`: when they were used, what they cost, how well they did.

Only matching events count, and those without a prompt_hash, or with an empty one, are of no version. Cost, latency,
time to the first token and every score have average, deviation and count, so that versions can be compared by a test.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from server.errors import Refused
from server.explore import sums
from server.explore.aggregation import aggregate, is_exact
from server.explore.cursor import Walk, walk
from server.explore.measures import clamped, measures
from server.explore.questions import PromptsQuestion
from server.explore.ranked import Ranked, RankedPlace, first_behind
from server.explore.snapshot import Relation, Snapshot
from server.explore.version_sums import Version, read_versions, table_of

VALUES: Final = {
    "last_seen": sums.LAST_SEEN,
    "first_seen": sums.START,
    "requests": sums.REQUESTS,
    "cost_usd": sums.COST,
    "error_rate": f"CAST(round({sums.ERROR_COUNT} / {sums.REQUESTS}, 12) AS DECIMAL(38, 12))",
}
"""What versions are sorted by, descending."""

SORTS: Final = tuple(VALUES)

_ORDERS: Final = {
    **{name: name for name in VALUES},
    "error_rate": "CAST(round(errors / requests, 12) AS DECIMAL(38, 12))",
}
"""The same of versions that are added up already."""

MOST_SCORES: Final = 10_000
"""Of all versions of an answer."""

_PLAIN: Final = ("first_seen", "last_seen", "requests", "errors", "error_rate", "cost_usd", "unpriced")
_TOKENS: Final = ("input_tokens", "output_tokens", "cached_tokens")
_QUANTILES: Final = ("p50", "p90", "p95", "p99")
_FIELDS: Final = {
    "latency_ms": ("avg", "sd", "count", *_QUANTILES),
    "ttft_ms": ("avg", "sd", "count", *_QUANTILES),
    "cost_usd": ("avg", "sd", "count"),
}
_MEASURES, _ = measures(
    (*_PLAIN, "calls", *_TOKENS, *(f"{field}:{each}" for field, names in _FIELDS.items() for each in names))
)
_PARTS: Final = list(dict.fromkeys(part for measure in _MEASURES for part in measure.parts))

_COLUMNS: Final = (
    *("prompt_hash", "timestamp", "kind", "status", "latency_ms", "ttft_ms", "cost_usd", "eval_scores"),
    *_TOKENS,
)


def answer_prompts(snapshot: Snapshot, question: PromptsQuestion) -> bytes:
    """Return the JSON of a page of versions.

    Raises `Refused`: bad_request for a cursor of another question, query_too_heavy; `Stopped`, `SegmentGone`.
    """
    step = walk(snapshot, question)
    known = read_versions(step.snapshot, question.project, question.filters, step.times)
    if known is not None:
        return _answer_known(step, question, known)
    matched = step.snapshot.relation(question.project, question.filters, step.times, columns=_COLUMNS)
    found = _versions(step, matched, question)
    page = found[: question.limit]
    named = _only(matched, [each.id for each in page])
    values = _values(step.snapshot, named, question.project) if page else {}
    scores = _scores(step.snapshot, named) if page else {}
    return _answer(step, found, page, values, scores)


def _answer_known(step: Walk, question: PromptsQuestion, known: Mapping[str, Version]) -> bytes:
    """Return the answer where all versions are added up."""
    engine = step.snapshot.engine
    source = engine.register(table_of(known))
    sql, place = first_behind(f"SELECT id, {_ORDERS[question.sort]} AS value FROM {source}", step.place_as(RankedPlace))
    found = [Ranked(*row) for row in engine.rows(sql, [*place, question.limit + 1])]
    page = found[: question.limit]
    if sum(len(known[each.id].scores) for each in page) > MOST_SCORES:
        raise _too_many_scores()
    values = {each.id: _measured(known[each.id].row(_PARTS)) for each in page}
    scores = {
        each.id: {
            name: {
                "avg": sums.ratio_json(of.sum, of.size),
                "sd": sums.deviation_json(of.deviation()),
                "count": of.size,
            }
            for name, of in known[each.id].scores.items()
        }
        for each in page
    }
    return _answer(step, found, page, values, scores)


def _answer(
    step: Walk,
    found: Sequence[Ranked],
    page: Sequence[Ranked],
    values: Mapping[str, Mapping[str, Any]],
    scores: Mapping[str, Mapping[str, Any]],
) -> bytes:
    cursor = step.cursor(page[-1].place) if len(found) > len(page) else None
    prompts = [_version(each.id, values[each.id], scores.get(each.id, {})) for each in page]
    return step.answer({"prompts": prompts, "nextCursor": cursor})


def _versions(step: Walk, matched: Relation, question: PromptsQuestion) -> list[Ranked]:
    """Return the first versions behind the cursor, one more than are to be shown."""
    sql, place = first_behind(
        f"SELECT prompt_hash AS id, {VALUES[question.sort]} AS value FROM ({matched.sql}) "
        "WHERE prompt_hash <> '' GROUP BY prompt_hash",
        step.place_as(RankedPlace),
    )
    rows = step.snapshot.engine.rows(sql, [*matched.params, *place, question.limit + 1])
    return [Ranked(*row) for row in rows]


def _only(matched: Relation, ids: Sequence[str]) -> Relation:
    sql = f"SELECT * FROM ({matched.sql}) WHERE prompt_hash IN (SELECT unnest(?::VARCHAR[]))"
    return Relation(sql, [*matched.params, [*ids]], matched.segments)


def _values(snapshot: Snapshot, named: Relation, project: str) -> dict[str, dict[str, Any]]:
    """Return version -> its measures."""
    exact = is_exact(snapshot.engine, named, project, _PARTS)
    rows = snapshot.engine.rows(
        f"WITH events AS NOT MATERIALIZED ({named.sql}) {aggregate('events', ['prompt_hash'], _PARTS, exact=exact)}",
        named.params,
    )
    return {key: _measured(parts) for key, *parts in rows}


def _measured(parts: Sequence[Any]) -> dict[str, Any]:
    """Return the measures of a version."""
    found = {
        measure.name: measure.value([parts[_PARTS.index(part)] for part in measure.parts]) for measure in _MEASURES
    }
    means = {name: sums.ratio_json(parts[_PARTS.index(sums.tokens(name))], parts[_CALLS]) for name in _TOKENS}
    return {**found, "avg": means}


_CALLS: Final = _PARTS.index(sums.CALLS)


def _scores(snapshot: Snapshot, named: Relation) -> dict[str, dict[str, Any]]:
    """Return version -> score -> its statistics."""
    number = clamped("score.value")
    rows = snapshot.engine.rows(
        "SELECT prompt_hash, score.key AS name, "
        f"fsum({number}), stddev_samp({number}), count(score.value) "
        f"FROM (SELECT prompt_hash, unnest(map_entries(eval_scores)) AS score FROM ({named.sql})) "
        "GROUP BY prompt_hash, name ORDER BY prompt_hash, name LIMIT ?",
        [*named.params, MOST_SCORES + 1],
    )
    if len(rows) > MOST_SCORES:
        raise _too_many_scores()
    found: dict[str, dict[str, Any]] = {}
    for version, name, total, deviation, count in rows:
        statistics = {"avg": sums.ratio_json(total, count), "sd": sums.deviation_json(deviation), "count": count}
        found.setdefault(version, {})[name] = statistics
    return found


def _too_many_scores() -> Refused:
    return Refused(
        "query_too_heavy", f"The versions have more than {MOST_SCORES:,} different scores; ask for a lower limit"
    )


def _version(prompt_hash: str, values: Mapping[str, Any], scores: Mapping[str, Any]) -> dict[str, Any]:
    """Return one version as the API answers it."""
    return {
        "prompt_hash": prompt_hash,
        **{name: values[name] for name in _PLAIN},
        **{f"avg_{name}": values["avg"][name] for name in _TOKENS},
        **{
            "cost" if field == "cost_usd" else field: {each: values[f"{field}:{each}"] for each in names}
            for field, names in _FIELDS.items()
        },
        "scores": dict(scores),
    }
