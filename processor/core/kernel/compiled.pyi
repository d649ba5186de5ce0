from collections.abc import Sequence

Dim = tuple[int, str, str, str, str, str]
Found = tuple[bytes, list[str | None], list[Dim], list[int], bool]

PAD: bytes

def configure(
    rows: Sequence[tuple[str, str, bool, bool, int, int | None, Sequence[str]]],
    numbers: Sequence[int],
    extra: int,
    most_count: int,
    most_cost: int,
    most_bytes: int,
    most_nesting: int,
    factors: Sequence[int],
    recent_factors: Sequence[int],
    bounds: Sequence[float],
) -> None: ...
def json_rows(padded: bytes, size: int, latest: int, lenient: bool, beside: bool) -> Found | None: ...
def objects(body: bytes) -> int: ...
def protobuf_rows(padded: bytes, records: list[bytes], latest: int, lenient: bool, beside: bool) -> Found: ...
def find(
    words: object,
    first: object,
    wrap: object,
    shift: object,
    multiplier: object,
    twist: object,
    base: object,
    keys: object,
    rows: object,
    segments: object,
) -> tuple[bytearray, bytearray, bytearray]: ...
def probe(table: object, kept: list[object], hashes: object, bits: int) -> bytearray: ...
def xxh3_of(text: bytes) -> int: ...
