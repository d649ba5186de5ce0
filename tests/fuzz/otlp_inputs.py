"""Requests of OTLP that nobody would send on purpose: any attributes, cut and damaged, in both encodings."""

from typing import Any, Final, NamedTuple

from hypothesis import strategies as st

from server.otlp.attribute_names import PLACES
from server.otlp.spans import Encoding
from tests.fuzz.inputs import NUMBERS, damaged
from tests.support.otlp import CHAT, TRACE, make_span, request, to_json, to_protobuf


class Export(NamedTuple):
    """A body, and what it is said to be."""

    encoding: Encoding
    body: bytes


_texts = st.text(st.characters(codec="utf-8"), max_size=20)
_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    _texts,
    st.binary(max_size=20),
    st.sampled_from([*NUMBERS, "1e9999999", '{"anthropic":{"cacheReadInputTokens":-1}}', "{", "[]", "429", "x" * 9000]),
)
_values = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_texts, inner, max_size=3), max_leaves=8
)
_attributes = st.dictionaries(st.sampled_from(sorted(PLACES)) | _texts, _values, max_size=8)
_times: Final = st.sampled_from(["0", "1", str(2**63), str(2**64 - 1), "1776679200123456789"])
_ids: Final = st.sampled_from(["", "00", "0" * 16, "00000000000000a1", "00000000000000a2", "00000000000000a3"])


def _span(attributes: dict[str, Any], changes: dict[str, Any], is_call: bool) -> dict[str, Any]:
    return make_span(1, attributes=(CHAT | attributes) if is_call else attributes, **changes)


spans = st.builds(
    _span,
    _attributes,
    st.fixed_dictionaries(
        {},
        optional={
            "spanId": _ids,
            "parentSpanId": _ids,
            "traceId": st.sampled_from(["", TRACE, "0" * 32, "ab"]),
            "startTimeUnixNano": _times,
            "endTimeUnixNano": _times,
            "name": _texts,
            "status": st.fixed_dictionaries({"code": st.integers(0, 3), "message": _texts}),
            "flags": st.sampled_from([0, 0x100, 0x300, 2**32 - 1]),
        },
    ),
    st.booleans(),
)
_requests = st.lists(spans, max_size=6).map(lambda found: request(*found))
exports = st.one_of(
    damaged(_requests.map(to_protobuf)).map(lambda body: Export("protobuf", body)),
    damaged(_requests.map(to_json)).map(lambda body: Export("json", body)),
    st.binary(max_size=200).map(lambda body: Export("protobuf", body)),
    st.integers(1, 3000).map(lambda depth: Export("json", b'{"resourceSpans":' + b"[" * depth + b"]" * depth + b"}")),
)
