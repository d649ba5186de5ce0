from collections.abc import Callable, Sequence
from typing import Any

Dim = tuple[int, str, str, str, str, str]
Found = tuple[bytes, list[str | None], list[Dim], list[int], bool]

PAD: bytes
SOURCE: str

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
def name_hashes(names: list[str | None], longer: Callable[[bytes], int]) -> bytearray: ...
def name_texts(names: list[str | None], encode: Callable[[str | None], bytes]) -> tuple[bytearray, bytearray]: ...
def row_keys(
    starts: list[bytes], ends: list[bytes], groups: object, bounds: object, texts: object, rows: object
) -> list[bytes]: ...
def key_hashes(keys: list[bytes], seed: int, otherwise: Callable[[bytes, int], bytes]) -> bytearray: ...
def split_keys(keys: list[bytes], prefix: bytes) -> tuple[bytes, list[bytes], list[str | None]] | None: ...
def replace_rows(
    kept: list[Any], people: list[Any], bits: int, rows: object, values: object, no_first: int, no_last: int
) -> tuple[bytearray, bytearray, bytearray, bytearray, bytearray]: ...
def split_dims(packed: bytes) -> tuple[bytearray, bytes] | None: ...
def one_dictionary(
    rows: object, width: int, offset: int, dictionaries: list[Any], sizes: list[int], in_order: bool
) -> list[Any] | None: ...
def split_request(raw: bytes, limit: int) -> tuple[int, list[bytes]] | None: ...
def put(table: object, hashes: object, numbers: object) -> None: ...
def distinct(keys: object) -> bool: ...
def kept_in_order(keys: object, claimed: object) -> bytearray | None: ...
def insert(
    words: object, first: int, wrap: int, base: int, keys: object, digests: object, offsets: object, ends: object
) -> None: ...
def add_sums(
    values: list[Any],
    marks: list[Any],
    bits: int,
    rows: object,
    offsets: object,
    events: object,
    errors: object,
    safe: int,
    most_requests: int,
) -> tuple[bytes, bytes, int] | None: ...
def count_latencies(
    held: list[Any],
    pages: list[Any],
    counts: list[Any],
    marks: list[Any],
    bits: int,
    page_bits: int,
    rows: object,
    offsets: object,
    buckets: object,
    never: int,
) -> tuple[bytes, int, bytes] | None: ...
def xxh3_of(text: bytes) -> int: ...
def configure_cells(
    texts: Sequence[tuple[str, int | None, bool, bool]], numbers: Sequence[str], ignored: bytes
) -> None: ...
def json_cells(padded: bytes, kept: bytes, lenient: bool) -> tuple[list[bytes], list[int]] | None: ...
def protobuf_cells(
    padded: bytes, records: list[bytes], kept: bytes, lenient: bool
) -> tuple[list[bytes], list[int]]: ...
def id_hashes(there: object, data: object, offsets: object, start: int, count: int, are_events: bool) -> bytes: ...
def configure_spans(
    names: Sequence[tuple[bytes, int]], prefixes: Sequence[bytes], most_value: int, most_line: int, most_count: int
) -> None: ...
def span_lines(
    spans: list[bytes],
    scope: bytes,
    project: bytes,
    plans: dict[bytes, Any],
    pieces: list[bytes],
    json_of: Callable[[bytes], bytes],
    sha256: Callable[[bytes], Any],
    make: Callable[[tuple[Any, ...]], Any],
) -> list[Any]: ...
def lines_by_home(text: bytes, homes: object, partitions: int) -> list[bytes]: ...
def cost_column(pages: list[tuple[object, int]], rows: int) -> tuple[bytes, bytes, int] | None: ...
def tag_places(
    offsets: object,
    keys: object,
    items: object,
    there: object,
    start: int,
    rows: int,
    wanted: bytes,
    absent: int,
) -> bytes: ...
def packed_texts(packed: bytes) -> tuple[bytes | None, bytes, bytearray] | None: ...
def event_id_texts(ids: object) -> bytes: ...
def number_pieces(packed: bytes, starts: object, ends: object) -> tuple[bytes, list[bytes]]: ...
def sorted_entries(hashes: list[Any], groups: list[int]) -> tuple[bytes, bytes]: ...
def sums_of_calls(
    columns: list[tuple[object, object, int, int]], flags: object, first: int, last: int
) -> tuple[int, int, int, list[tuple[int, int]]]: ...
def flat_pages(there: object, start: int, rows: int, of_page: int) -> tuple[list[tuple[bytes, int, int, int]], int]: ...
def hides_items(there: object, offsets: object, start: int, rows: int) -> bool: ...
def nested_pages(
    there: object,
    offsets: object,
    start: int,
    rows: int,
    items: object,
    items_start: int,
    items_count: int,
    is_key: bool,
    of_page: int,
) -> list[tuple[bytes, int, int, int]]: ...
def text_bodies(
    there: object, data: object, offsets: object, start: int, count: int, pages: list[Any], coded: bool
) -> Any: ...
def coded_bodies(
    there: object,
    numbers: object,
    start: int,
    count: int,
    data: object,
    offsets: object,
    texts_start: int,
    texts_count: int,
    pages: list[Any],
) -> tuple[list[bytes], tuple[bytes, int], bytes]: ...
def number_bodies(
    there: object, data: object, start: int, count: int, width: int, form: int, pages: list[Any]
) -> list[bytes]: ...
def number_bounds(
    there: object, data: object, start: int, count: int, width: int, are_doubles: bool
) -> tuple[Any, Any] | None: ...
def column_chunk(
    about: bytes,
    statistics: bytes,
    dictionary: tuple[bytes, int] | None,
    pages: list[Any],
    bodies: list[bytes],
    encoding: int,
    pack: Callable[[bytes], bytes] | None,
    start: int,
    parts: list[bytes],
) -> tuple[bytes, int, int]: ...
def taken_places(pieces: object, rows: object) -> object: ...
def take_numbers(
    arrays: list[tuple[object, object, int, int]], places: object, width: int
) -> tuple[bytes | None, bytes, int]: ...
def take_codes(
    arrays: list[tuple[object, object, int, int, object]], places: object
) -> tuple[bytes | None, bytes, int]: ...
def take_texts(
    arrays: list[tuple[object, object, int, int, object]], places: object
) -> tuple[bytes | None, bytes, bytearray, int]: ...
def take_lists(
    arrays: list[tuple[object, object, int, int, int]], places: object
) -> tuple[bytes | None, bytes, object, int, int]: ...
def counted_texts(
    there: object, data: object, offsets: object, start: int, count: int, flags: object
) -> tuple[bytes, bytes, bytes] | None: ...
def batch_bytes(schema: object, array: object) -> int: ...
def bytes_of_runs(schema: object, array: object, rows: int, fixed: int, common: int) -> bytes: ...
def line_ends(text: bytes) -> int: ...
def rows_of_columns(
    file: int,
    columns: list[tuple[int, int, int, int, int, int, int, int]],
    rows: object,
    of_group: int,
    unpack: Callable[[bytes, int], bytes],
) -> list[list[Any]] | None: ...
def rows_with_texts(
    file: int,
    start: int,
    size: int,
    texts: list[bytes],
    of_group: int,
    most: int,
    unpack: Callable[[bytes, int], bytes],
) -> bytes | None: ...
