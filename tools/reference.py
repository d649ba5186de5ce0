"""Makes docs/reference/ from the code: `python -m tools.reference`.

Each page comes from what the program itself goes by: the event's fields from the table of fields, the HTTP API from the
OpenAPI document, the gRPC API from the .proto files and their comments, settings from the models that read them,
commands from click, errors from the table of reasons. `--check` only compares, and fails if a page is not current.
"""

import argparse
import inspect
import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, get_args

import click
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    SourceCodeInfo,
)

from processor.core.events.content_coding import MAX_BODY
from processor.core.events.event import MAX_EVENT_BYTES, MAX_NESTING, Code
from processor.core.events.fields import reference
from processor.settings import Settings
from server.cli.commands import main as program
from server.errors import Rejection
from server.http_api.openapi import document
from server.http_api.openapi_explore import RULES
from server.ingest.intake import MAX_EVENTS
from server.otlp import attribute_names, content, provider_metadata, tokens
from server.otlp import kinds as span_kinds
from server.otlp.extra import MAX_LINE, MAX_ORIGIN
from server.otlp.values import MAX_DEPTH, MAX_VALUE
from server.settings import ServerSettings
from server.status import TABLE
from tools.protos import GOOGLE_RPC, sources

ROOT: Final = Path(__file__).resolve().parent.parent
FOLDER: Final = ROOT / "docs" / "reference"
WIDTH: Final = 110
HEAD: Final = "<!-- made by `python -m tools.reference`: change the code, then run `make docs` -->\n"

Schema = dict[str, Any]

# --- Markdown --------------------------------------------------------------------------------------------------------


def prose(text: str) -> str:
    """Return text as one paragraph of lines that are not too long."""
    return textwrap.fill(" ".join(text.split()), WIDTH, break_long_words=False, break_on_hyphens=False)


def paragraphs(text: str) -> Iterator[str]:
    """Return the paragraphs of a text; a list keeps its lines."""
    for part in text.split("\n\n"):
        if part.startswith("- "):
            fill = textwrap.TextWrapper(WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
            yield "\n".join(fill.fill(line) for line in part.split("\n"))
        else:
            yield prose(part)


def cell(text: str) -> str:
    """Return text as it may stand in a cell of a table."""
    plain = " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
    return _ADDRESS.sub(lambda found: code(found[0]), plain)


_ADDRESS: Final = re.compile(r"(?<![`(])\bhttps?://(?:\w[^\s,;)]*)?(?!`)")
"""A bare address, which some renderers make a link of."""


def table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table; its cells are Markdown."""
    lines = [list(titles)]
    lines.append(["---"] * len(lines[0]))
    lines += [list(row) for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def page(title: str, *parts: str) -> str:
    """Return a whole page: its title, then its parts with a blank line between each two."""
    return "\n\n".join([f"# {title}", HEAD.strip(), *(part for part in parts if part)]) + "\n"


def code(text: object) -> str:
    """Return text as code."""
    return f"`{text}`"


# --- JSON schemas ----------------------------------------------------------------------------------------------------


def shape(schema: Schema) -> str:
    """Return in a few words what values a schema has: its type and its limits."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](event-fields.md)" if name == "Event" else f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(shape(each) for each in schema["anyOf"]))
    if "enum" in schema:
        return ", ".join(code(each) if each else "empty" for each in schema["enum"])
    if "const" in schema:
        return code(schema["const"])
    choice = _CHOICE(schema.get("pattern", ""))
    if choice is not None:
        return ", ".join(map(code, choice[1].split("|")))
    kind = schema.get("type", "any")
    if kind == "array":
        return f"list of {shape(schema.get('items', {}))}{limits(schema)}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {shape(schema['additionalProperties'])}{limits(schema)}"
    return f"{schema.get('format') or kind}{limits(schema)}"


_CHOICE: Final = re.compile(r"\^\(([a-z|]+)\)\$").fullmatch
"""A pattern that is a list of words."""


def limits(schema: Schema) -> str:
    """Return the limits of a schema as text that follows its type."""
    found = []
    for least, most, what in (
        ("minimum", "maximum", ""),
        ("minLength", "maxLength", " characters"),
        ("minItems", "maxItems", " items"),
        ("minProperties", "maxProperties", " members"),
    ):
        low, high = schema.get(least), schema.get(most)
        if low is not None and high is not None:
            found.append(f"{number(low)} to {number(high)}{what}")
        elif high is not None:
            found.append(f"at most {number(high)}{what}")
        elif low == 1 and what:
            found.append("not empty")
        elif low is not None:
            found.append(f"at least {number(low)}{what}")
    if "exclusiveMinimum" in schema:
        found.insert(0, f"above {number(schema['exclusiveMinimum'])}")
    if "pattern" in schema:
        found.append(code(schema["pattern"].replace("|", "\\|")))
    return ", " + ", ".join(found) if found else ""


def number(value: float) -> str:
    """Return a number with separators, or the largest one by its name."""
    if abs(value) > 1e300:
        return "the largest double"
    return f"{value:,}" if isinstance(value, int) or not value.is_integer() else f"{int(value):,}"


def members(schema: Schema, before: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Walk the members of an object, those of objects within it too: name, type, required, what it means."""
    for name, of in schema.get("properties", {}).items():
        required = "yes" if name in schema.get("required", ()) else ""
        inner = of.get("items", {}) if of.get("type") == "array" else of
        inner = next((each for each in inner.get("anyOf", ()) if "properties" in each), inner)
        if "properties" in inner:
            kind = "list of objects" if of.get("type") == "array" else "object or null" if "anyOf" in of else "object"
            place = f"{before}{name}" + ("[]" if of.get("type") == "array" else "")
            yield place, kind, required, of.get("description", "")
            yield from members(inner, f"{place}.")
        else:
            yield f"{before}{name}", shape(of), required, of.get("description", "")


# --- the event -------------------------------------------------------------------------------------------------------


def event_fields() -> str:
    """Return the page of the event's fields."""
    rows = [
        (
            *(code(row.name), row.type, row.required, row.rule, cell(row.lenient), cell(row.span)),
            *(cell(row.description), code(row.protobuf)),
        )
        for row in reference()
    ]
    return page(
        "Event fields",
        prose(
            f"An event is one JSON object, at most {MAX_EVENT_BYTES >> 10} KiB, nested at most {MAX_NESTING} levels; "
            f"a request carries 1 to {MAX_EVENTS} of them, in a body of at most {MAX_BODY >> 20} MiB when inflated. "
            "Over gRPC it is the message `Event`, with the same names and rules."
        ),
        prose(
            "A span is an event whose `kind` is `span`: a step that is no call to a model (agent, tool, retrieval, "
            "chain). It is deduplicated, charged to the quota and stored like any other, and counts in no row of cost."
        ),
        table(("field", "JSON type", "required", "rule", "under `lenient`", "in a span", "meaning", "protobuf"), rows),
        "## Reading of values",
        _READING,
        "## Codes of rejected events",
        prose(
            "A rejected event is an item of `rejected` in the answer, with the first fault in the order of the table "
            "above. The other events of the batch are accepted."
        ),
        table(("code", "meaning"), ((code(name), _CODES[name]) for name in get_args(Code))),
        table(("member of an item", "meaning"), ((code(name), _ITEM[name]) for name in Rejection.__struct_fields__)),
    )


_READING: Final = """\
- `null` is the same as an absent field. Unknown fields are kept with the event, not refused.
- `project_id` in an event is ignored: the key decides the project.
- Whole numbers may be written as `5.0` or `1e2` and go to 2^53 - 1; `-0` is 0; `1e400` is out of range;
  NaN is a syntax fault. Of duplicate JSON keys the last one wins.
- A cost is read as the decimal that was written and rounded half-even to 12 places at intake.
- A timestamp has `Z` or an offset; what is below microseconds is cut."""

_CODES: Final[dict[str, str]] = {
    "missing": "A required field is absent or null",
    "invalid": "The value has the wrong type or form",
    "out_of_range": "The sign, length, count or time is outside the limits, or the project is at one of its bounds",
    "unknown_value": "The value is not one of the listed ones",
    "syntax": "The line is not JSON, or the event could not be decoded",
}
_ITEM: Final[dict[str, str]] = {
    "line": "The line in the body as sent, from 1; over gRPC the index of the event + 1",
    "event_id": "As sent; null if it could not be read",
    "field": "The field at fault; null if the line could not be decoded",
    "code": "One of the codes above",
    "message": "A sentence that says what is wrong",
}

# --- settings --------------------------------------------------------------------------------------------------------


def settings() -> str:
    """Return the page of every setting."""
    own = [name for name in ServerSettings.model_fields if name not in Settings.model_fields]
    return page(
        "Settings",
        prose(
            "Each setting is a flag, a variable and a key of a TOML file. Flags win over variables, variables over the "
            "file. The file is `./spendstream.toml`, or what `--config` or `SPENDSTREAM_CONFIG` names; its keys are "
            "the names below in lower case, without `SPENDSTREAM_`. A file that is named has to exist. A setting that "
            "names a file or directory may begin with `~/`, and may not be empty."
        ),
        '```toml\nhttp_bind = "127.0.0.1:9080"\nretention = 90\n```',
        "## Settings of every process",
        _settings_table(Settings, list(Settings.model_fields)),
        "## Settings of the API",
        "These belong to `spendstream serve` and `spendstream api`.",
        _settings_table(ServerSettings, own),
        "## Variables of the commands",
        table(
            ("variable", "meaning"),
            (
                ("`SPENDSTREAM_CONFIG`", "The TOML file with settings"),
                ("`SPENDSTREAM_PURE`", "`1`: Python does the work of the compiled kernel"),
                *((code(name), cell(said)) for name, said in sorted(command_variables().items())),
            ),
        ),
    )


def _settings_table(kind: type[Settings], names: list[str]) -> str:
    properties = kind.model_json_schema()["properties"]
    rows = []
    for name in names:
        schema = properties[name]
        default = kind.model_fields[name].default
        said = "unset" if default is None else code(str(default).lower() if isinstance(default, bool) else default)
        if "anyOf" in schema:  # null is what "unset" says
            schema = schema | {"anyOf": [each for each in schema["anyOf"] if each != {"type": "null"}]}
        flag = f"--{name.replace('_', '-')}"
        rows.append((code(f"SPENDSTREAM_{name.upper()}"), code(flag), said, shape(schema), cell(schema["description"])))
    return table(("variable", "flag", "default", "type and limits", "meaning"), rows)


def command_variables() -> dict[str, str]:
    """Find the variables that single commands read instead of a flag, and what that flag means."""
    found: dict[str, str] = {}
    for path, command in commands(program, "spendstream"):
        del path
        for option in command.params:
            variables = option.envvar
            for variable in [variables] if isinstance(variables, str) else variables or ():
                if isinstance(option, click.Option):
                    found.setdefault(variable, option.help or "")
    return found


# --- HTTP ------------------------------------------------------------------------------------------------------------

_TAGS: Final = {
    "ingest": "Ingest",
    "read": "Reads",
    "events": "Events, traces, metrics",
    "operate": "Operation",
    "admin": "Administration",
}
_SHARED: Final = "#/components/parameters/"
"""Where the filters of the event store are, which several operations have."""


def http_api() -> str:
    """Return the page of the HTTP API."""
    made = document("")
    parts = []
    for tag in made["tags"]:
        parts.append(f"## {_TAGS.get(tag['name'], tag['name'].capitalize())}")
        if tag["name"] == "events":
            parts += [*paragraphs(RULES), *_filters(made["components"]["parameters"].values())]
        for path, methods in made["paths"].items():
            for method, operation in methods.items():
                if operation["tags"] == [tag["name"]]:
                    parts += _operation(method.upper(), path, operation)
    parts.append("## Schemas")
    for name, schema in made["components"]["schemas"].items():
        if name == "Event":
            continue
        parts += [f"### {name}", *paragraphs(schema.get("description", ""))]
        rows = [(code(place), kind, required, cell(said)) for place, kind, required, said in members(schema)]
        if rows:
            parts.append(table(("member", "type", "required", "meaning"), rows))
        elif schema.get("type") == "object":
            parts.append("An object without members.")
        elif "description" not in schema:
            parts.append(prose(f"One of {shape(schema)}."))
    return page(
        "HTTP API",
        prose(
            "The same as the running server's own document at `GET /openapi.json` (OpenAPI 3.1), which `GET /docs` "
            "shows as a page to try. Times are RFC 3339 in UTC; a date alone is midnight UTC; `start` is inclusive, "
            "`end` exclusive. A key goes into the header `x-api-key`, or, but for ingest, `Authorization: Bearer`. "
            "Errors are listed in [errors](errors.md)."
        ),
        *parts,
    )


def _operation(method: str, path: str, operation: Schema) -> list[str]:
    parts = [f"### `{method} {path}`", prose(operation["summary"].rstrip(".") + ".")]
    parts.append(prose(operation.get("description", "")))
    if operation.get("security") == []:
        parts.append("No key is needed.")
    rows = [
        (code(each["name"]), each["in"], shape(each["schema"]), "yes" if each.get("required") else "", cell(said))
        for each in operation.get("parameters", ())
        if "$ref" not in each
        for said in [_with_default(each)]
    ]
    if rows:
        parts.append(table(("parameter", "in", "type", "required", "meaning"), rows))
    shared = [each["$ref"].removeprefix(_SHARED) for each in operation.get("parameters", ()) if "$ref" in each]
    if shared:
        times = "`start`, `end` and the " if "start" in shared else "The "
        parts.append(f"{times}[filters](#filters) are parameters, too.")
    parts += [f"```sh\n{each['source']}\n```" for each in operation.get("x-codeSamples", ())]
    for media, body in operation.get("requestBody", {}).get("content", {}).items():
        lines = body.get("x-line-schema")
        what = f"lines of {shape(lines)}" if lines else shape(body["schema"])
        parts.append(f"Body: `{media}`, {what}.")
    answers = []
    for status, answer in sorted(operation["responses"].items()):
        bodies = ", ".join(f"{shape(each['schema'])}" for each in answer.get("content", {}).values())
        headers = ", ".join(map(code, answer.get("headers", ())))
        answers.append((status, cell(answer["description"]), _body(answer, bodies), headers))
    parts.append(table(("status", "when", "body", "headers"), answers))
    return parts


def _filters(parameters: Iterable[Schema]) -> Iterator[str]:
    """Return the section of the filters; one that excludes stands with the one that includes."""
    rows = []
    known = {each["name"]: each for each in parameters}
    for name, each in known.items():
        if not name.endswith("!"):
            names = f"{code(name)}, {code(name + '!')}" if f"{name}!" in known else code(name)
            kind = each["schema"]
            rows.append(
                (names, shape(kind["items"] if kind.get("type") == "array" else kind), cell(each["description"]))
            )
    yield "### Filters"
    yield table(("parameter", "type", "meaning"), rows)


def _body(answer: Schema, bodies: str) -> str:
    """Name the body of an answer; a list of one kind stands in an object of one member."""
    for each in answer.get("content", {}).values():
        properties = each["schema"].get("properties")
        if properties:
            return ", ".join(f"`{name}`: {shape(of)}" for name, of in properties.items())
    return bodies


def _with_default(parameter: Schema) -> str:
    default = parameter["schema"].get("default")
    said: str = parameter.get("description", "")
    return said if default is None else f"{said}; default `{default}`"


# --- gRPC ------------------------------------------------------------------------------------------------------------


def proto_files() -> list[FileDescriptorProto]:
    """Return our .proto files as protoc reads them, comments included."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "set"
        words = ["-I", ".", "-I", str(GOOGLE_RPC), "--include_source_info", f"--descriptor_set_out={target}"]
        subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *words, *sources()], cwd=ROOT, check=True)
        return list(FileDescriptorSet.FromString(target.read_bytes()).file)


_files: list[FileDescriptorProto] = []
OTLP: Final = "spendstream.otlp.v1"
"""How we read the messages of OpenTelemetry, whose documentation is theirs."""


def files() -> list[FileDescriptorProto]:
    """Return the files, which are read once."""
    if not _files:
        _files.extend(proto_files())
    return _files


def comment(file: FileDescriptorProto, place: tuple[int, ...]) -> str:
    """Return what stands above the thing at a place."""
    for location in file.source_code_info.location:
        if tuple(location.path) == place:
            return _said(location)
    return ""


def _said(location: SourceCodeInfo.Location) -> str:
    text = [*location.leading_detached_comments, location.leading_comments]
    return "\n\n".join(" ".join(each.split()) for part in text for each in part.split("\n\n") if each.strip())


def proto_type(message: DescriptorProto, field: FieldDescriptorProto) -> str:
    """Return a field's type as the .proto file has it."""
    name = field.type_name.rpartition(".")[2]
    entry = next((each for each in message.nested_type if each.name == name and each.options.map_entry), None)
    if entry is not None:
        key, value = entry.field
        return f"map of {proto_type(entry, key)} to {proto_type(entry, value)}"
    if name:
        kind = f"[{name}](grpc-api.md#{name.lower()})" if ".spendstream." in field.type_name else field.type_name[1:]
    else:
        kind = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    return f"list of {kind}" if field.label == FieldDescriptorProto.LABEL_REPEATED else kind


def grpc_api() -> str:
    """Return the page of the gRPC API."""
    parts = []
    for file in files():
        if file.package == OTLP:
            continue
        parts += [f"## {file.name}", *map(prose, comment(file, (12,)).split("\n\n"))]
        for index, service in enumerate(file.service):
            parts.append(f"### {service.name}")
            methods = []
            for at, method in enumerate(service.method):
                asked = _streamed(method.input_type, method.client_streaming)
                answered = _streamed(method.output_type, method.server_streaming)
                methods.append((code(method.name), asked, answered, cell(comment(file, (6, index, 2, at)))))
            parts.append(table(("method", "request", "response", "meaning"), methods))
        for index, message in enumerate(file.message_type):
            parts += [f"### {message.name}", *map(prose, comment(file, (4, index)).split("\n\n"))]
            rows = []
            for at, field in enumerate(message.field):
                said = cell(comment(file, (4, index, 2, at)))
                kind = proto_type(message, field).replace("grpc-api.md#", "#")
                needed = "optional" if field.proto3_optional else ""
                rows.append((code(field.name), str(field.number), kind, needed, said))
            parts.append(table(("field", "number", "type", "presence", "meaning"), rows) if rows else "No fields.")
    return page(
        "gRPC API",
        prose(
            "Package `spendstream.v1`; the server has reflection and `grpc.health.v1`. A field that is marked "
            "`optional` has presence: missing is not zero. Refusals are statuses with `google.rpc` details; their "
            "reasons are listed in [errors](errors.md). Beside it the port serves "
            "`opentelemetry.proto.collector.trace.v1.TraceService/Export`, with the messages of OpenTelemetry: see "
            "[OTLP attributes](otlp-attributes.md)."
        ),
        *(part for part in parts if part),
    )


def _streamed(name: str, stream: bool) -> str:
    short = name.rpartition(".")[2]
    return f"{'stream of ' if stream else ''}[{short}](#{short.lower()})"


# --- OTLP ------------------------------------------------------------------------------------------------------------


def otlp_attributes() -> str:
    """Return the page of what becomes of a span's attributes."""
    return page(
        "OTLP attributes",
        *_otlp_fields(),
        *_otlp_kinds(),
        *_otlp_tokens(),
        *_otlp_extra(),
        *_otlp_content(),
    )


def _otlp_fields() -> list[str]:
    """Which attribute becomes which field."""
    rows = [
        (cell(names.meaning), ", ".join(map(code, names.names)), "yes" if names.stays else "")
        for names in attribute_names.TABLE
    ]
    prefixes = ", ".join(map(code, attribute_names.TAG_PREFIXES))
    return [
        prose(
            "What a span that comes over OTLP becomes. The rows are read in this order, and of several names in a row "
            "the first that the span has counts. What is not read into a field is kept under `attributes` of `extra`, "
            "as are names of the rows that are marked."
        ),
        table(("becomes", "names", "stays an attribute, too"), rows),
        prose(
            f"What stands behind {prefixes} is the name of a tag. A text of more than 256 characters is cut, and stays "
            "an attribute in full. Providers: `openai` and `azure` with `openai` behind it are openai, `anthropic` is "
            "anthropic, what begins with `gcp.`, `google`, `vertex` or `gemini` is google; any other is `custom`, and "
            "what was sent the tag `provider.raw`. An event `exception` has the code and the message of an error that "
            "no attribute has; `timeout`, `deadline exceeded` or 408 in the type make the status `timeout`, `rate "
            "limit`, `too many requests`, `resource exhausted` or 429 `rate_limited`."
        ),
    ]


def _otlp_kinds() -> list[str]:
    """Which spans are calls."""
    kinds = [
        (code(name), f"`{said}`", _kind(kind))
        for name, table_of in (
            ("gen_ai.operation.name", span_kinds.GEN_AI),
            ("openinference.span.kind", span_kinds.OPENINFERENCE),
            ("ai.operationId", span_kinds.VERCEL),
            ("llm.request.type", span_kinds.REQUEST_TYPE),
            ("traceloop.span.kind", span_kinds.TRACELOOP),
        )
        for said, kind in table_of.items()
    ]
    return [
        "## Calls and spans",
        prose(
            "The first of these attributes that a span has decides, in this order. A value that is not here is a "
            "`span` that is passed through when calls are looked for around a call. Without any of them a span with a "
            "model and a provider or tokens is a call, one with an agent or a tool a span; all others are dropped, "
            "unless `SPENDSTREAM_OTLP_SPANS` is `all`."
        ),
        table(("attribute", "value", "becomes"), kinds),
    ]


def _otlp_tokens() -> list[str]:
    """How tokens are counted."""
    beside = [(code(row.scope), code(row.provider), row.part, cell(row.why)) for row in tokens.BESIDE]
    passed_on = [(code(".".join(path)), code(part)) for part, path in provider_metadata.COUNTS]
    return [
        "## Tokens",
        prose(
            "Input tokens include those that were read from and written to a cache, output tokens those of reasoning. "
            "Where the parts are more than the whole, they are added to it, as they are for the sources below, and the "
            "event is marked with `usage_normalized` in `extra`. Counts that were not sent stay absent: the event is "
            "unpriced."
        ),
        table(("scope", "provider", "beside the whole", "why"), beside),
        prose(
            f"Of a span that has an attribute {code(tokens.DETAILS + '...')} the whole includes its parts. Of others "
            "counts that no attribute has are looked for in the object `ai.response.providerMetadata`:"
        ),
        table(("in the object", "becomes"), passed_on),
        prose(
            "What a library does not send cannot be counted: version 5 of the Vercel AI SDK reports no cached tokens "
            "of answers of OpenAI and Amazon Bedrock that are not streamed, version 4 none of Gemini, and no thoughts; "
            "`opentelemetry-instrumentation-google-genai` before 1.0 reports neither. Such calls are priced as if "
            "nothing had been cached or thought."
        ),
    ]


def _otlp_extra() -> list[str]:
    """What is kept beside the fields."""
    return [
        "## What else is kept in `extra`",
        table(
            ("name", "value"),
            (
                ("`attributes`", "The attributes that no field has"),
                ("`resource`", "Attributes of the resource"),
                ("`scope`", "`name`, `version` and `attributes` of the instrumentation"),
                ("`events`", "The span's events: `name`, `time`, `attributes`"),
                ("`sent_parent_span_id`", "The parent as it was sent, where the event has another one"),
                ("`usage_normalized`", "true: the tokens that were sent did not include their parts"),
                ("`wrapper`", "true: a call that repeats one below it, and is kept as a span"),
                ("`cut`", "Names of what had no room"),
            ),
        ),
        prose(
            f"A value is cut after {MAX_VALUE >> 10} KiB and says how long it was; lists and objects keep a depth "
            f"of {MAX_DEPTH}. Of a span of more than {MAX_LINE >> 10} KiB the largest attributes and events are left "
            f"out first, and of a resource or a scope of more than {MAX_ORIGIN >> 10} KiB, or less where thousands of "
            "spans share one, the largest attributes; their names stand under `cut`."
        ),
    ]


def _otlp_content() -> list[str]:
    """What is left out with `drop`."""
    return [
        "## Prompts and completions",
        prose(
            "`SPENDSTREAM_OTLP_CONTENT=drop` leaves out these attributes of spans, their events, resources and scopes, "
            "and all whose names begin with one of the prefixes."
        ),
        prose(f"Names: {', '.join(map(code, sorted(content.NAMES)))}."),
        prose(f"Prefixes: {', '.join(map(code, content.PREFIXES))}."),
    ]


def _kind(kind: span_kinds.Kind) -> str:
    if kind.role == "call":
        return f"call, `{kind.operation}`"
    return "span: calls below are made for it" if kind.role == "barrier" else "span"


# --- errors ----------------------------------------------------------------------------------------------------------


def errors() -> str:
    """Return the page of reasons and their status codes."""
    rows = [(code(reason), str(each.http), each.grpc.name, cell(each.meaning)) for reason, each in TABLE.items()]
    return page(
        "Errors",
        prose(
            "The body of every error answer has `error`, a sentence that says what is wrong, and `reason`, one of the "
            "words below. Over gRPC the sentence is the status message, and the word in upper case is "
            "`google.rpc.ErrorInfo.reason`, with the domain `spendstream`. The list is closed. Where HTTP itself asks "
            "for a status, 417 (Expect) has `bad_request`, 501 (Transfer-Encoding) `unsupported_encoding`; a `/readyz` "
            "that is not ready has `unavailable`."
        ),
        table(("reason", "HTTP", "gRPC", "meaning"), rows),
        prose(
            "`Retry-After` (gRPC: `RetryInfo`) stands where sending the same request again can help, 1 to 60 seconds. "
            "Codes of single rejected events are listed in [event fields](event-fields.md#codes-of-rejected-events)."
        ),
    )


# --- commands --------------------------------------------------------------------------------------------------------


def commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    """Walk all commands below one, by name; hidden ones are left out."""
    if not isinstance(command, click.Group):
        yield path, command
        return
    for name, each in sorted(command.commands.items()):
        if not each.hidden:
            yield from commands(each, f"{path} {name}")


def cli() -> str:
    """Return the page of all commands."""
    parts = []
    for path, command in commands(program, "spendstream"):
        context = click.Context(command, info_name=path)
        usage = " ".join((path, *command.collect_usage_pieces(context)))
        parts += [f"## {path}", f"```text\n{usage}\n```", *_help(command.help or "")]
        own, shared = [], []
        for option in command.get_params(context):
            record = option.get_help_record(context)
            if not isinstance(option, click.Option) or record is None or option.hidden or option.name == "help":
                continue
            if option.name in ServerSettings.model_fields or option.name == "config":
                shared.append(option.opts[0])
            else:
                own.append((code(record[0].replace("|", "\\|")), cell(_plain(record[1], option))))
        if own:
            parts.append(table(("option", "meaning"), own))
        if len(shared) > 6:
            kind = "the API and of every process" if "--http-bind" in shared else "every process"
            parts.append(f"All settings of {kind} are options, too: [settings](settings.md).")
        elif shared:
            parts.append(f"Settings as options: {', '.join(map(code, shared))} ([settings](settings.md)).")
    return page(
        "Command line",
        prose(inspect.cleandoc(program.help or "").split("\n\n", maxsplit=1)[0]),
        prose(
            "Every command has `--help`. Exit codes: 0 all is well, 1 something was found, 2 the command was asked for "
            "something that cannot be."
        ),
        *parts,
    )


def _plain(text: str, option: click.Option) -> str:
    variables = [option.envvar] if isinstance(option.envvar, str) else list(option.envvar or ())
    missing = [each for each in variables if each not in text]
    return text + (f" [{', '.join(missing)}]" if missing else "")


def _help(text: str) -> Iterator[str]:
    """Return the paragraphs of a help text; those that click prints as they are become blocks of code."""
    for part in inspect.cleandoc(text).split("\n\n"):
        if part.startswith("\b"):
            lines = part.split("\n")[1:]
            if lines and lines[0].rstrip().endswith(":"):
                yield lines.pop(0).strip()
            yield "```sh\n" + textwrap.dedent("\n".join(lines)) + "\n```"
        else:
            yield prose(part)


# --- all of them -----------------------------------------------------------------------------------------------------

PAGES: Final[dict[str, Callable[[], str]]] = {
    "cli.md": cli,
    "errors.md": errors,
    "event-fields.md": event_fields,
    "grpc-api.md": grpc_api,
    "http-api.md": http_api,
    "otlp-attributes.md": otlp_attributes,
    "settings.md": settings,
}


def made() -> dict[str, str]:
    """Return the pages by the name of their file."""
    return {name: re.sub(r"\n{3,}", "\n\n", make()) for name, make in PAGES.items()}


def stale() -> list[str]:
    """Return the names of the pages that are not what the code says."""
    return [name for name, text in made().items() if _text(FOLDER / name) != text]


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def main() -> int:
    """Write the pages, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only; exit code 1 if a page is not current")
    if parser.parse_args().check:
        found = stale()
        for name in found:
            print(f"docs/reference/{name} is not current: run `make docs`", file=sys.stderr)
        return 1 if found else 0
    FOLDER.mkdir(exist_ok=True)
    for name, text in made().items():
        (FOLDER / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
