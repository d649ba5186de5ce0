"""What `events`, `trace` and `metrics` have in common: the server that answers them, and the filters as flags."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

import click

from processor.core.events.fields import FIELDS
from processor.settings import Settings
from server.cli.common import UNICODE, fail, load_or_exit
from server.cli.grouped_help import GroupedOption
from server.cli.remote import Question, Unanswered, ask, key_option, read_lines, url_option
from server.cli.settings_flags import settings_options
from server.errors import Refused
from server.explore.filter_params import ALL_KINDS, CHOICES
from server.explore.questions import TEXT_FILTERS
from server.processes import server_address

F = TypeVar("F", bound=Callable[..., Any])

FILTERS: Final = "Filters"
"""The heading of the filters; a flag that is repeated means any of its values."""

_URL: Final = "Ask this server  [default: the server that runs on the data directory]"
_MEANINGS: Final = {field.name: field.description for field in FIELDS}
_MANY: Final = (*TEXT_FILTERS, "tool", "tag", "kind")
_ONCE: Final = ("min_cost_usd", "max_cost_usd", "min_latency_ms", "max_latency_ms", "start", "end")

Params = list[tuple[str, str]]


# --- the server ------------------------------------------------------------------------------------------------------


def server_options(command: F) -> F:
    """Add `--url`, `--key`, and the setting that says where a server runs."""
    return server_and_settings(Settings)(command)


def server_and_settings(kind: type[Settings], *names: str) -> Callable[[F], F]:
    """The same with further settings."""

    def decorate(command: F) -> F:
        command = settings_options(kind, "data_dir", *names)(command)
        return url_option("--url", _URL, default=None)(key_option(required=False)(command))

    return decorate


def csv_option(command: F) -> F:
    """Add `--csv`."""
    text = "Print CSV: the fields of a pipe, with all their digits"
    return click.option("--csv", "as_csv", is_flag=True, help=text)(command)


def one_form(*, as_json: bool, as_csv: bool) -> None:
    """End the command where two forms of its answer are asked for."""
    if as_json and as_csv:
        fail("--json and --csv are two forms of the same answer: give one of them")


class RunningServer:
    """The server that answers; ends the command where there is none, or where it refuses."""

    def __init__(self, flags: dict[str, Any]) -> None:
        """`flags` are the values of `server_options`, which are taken out."""
        url, key = flags.pop("url"), flags.pop("key")
        if url is None:
            settings = load_or_exit(Settings, {name: flags.pop(name) for name in ("data_dir", "config")})
            url = server_address.find(settings.data_dir)
            if url is None:
                fail(
                    f"no server runs on {settings.data_dir}, and only a running one can look into its events; start "
                    "it, or name another one with --url"
                )
        if key is None:
            fail(f"{url} answers only with an API key: give one as SPENDSTREAM_KEY, or with --key")
        self._url: str = url
        self._key: str = key

    def ask(self, path: str, params: Params) -> bytes:
        """Return the JSON of an answer."""
        try:
            return asyncio.run(ask(self._url, self._key, Question(path, params)))
        except Refused as refused:
            fail(refused.message)
        except Unanswered as error:
            fail(f"{error}; start that server, or name another one with --url")

    def read_lines(self, path: str, params: Params, take: Callable[[bytes], None]) -> None:
        """Call `take` with each line of an answer, as it arrives."""
        try:
            asyncio.run(read_lines(self._url, self._key, Question(path, params), take))
        except Refused as refused:
            fail(refused.message)
        except Unanswered as error:
            fail(f"{error}; start that server, or name another one with --url")


# --- filters ---------------------------------------------------------------------------------------------------------


def filter_options(command: F) -> F:
    """Add a flag for each filter, and `--not` for those that exclude."""
    made: list[Callable[[F], F]] = [
        _flag("start", "From this RFC 3339 time or date on", metavar="TIME"),
        _flag("end", "Before this RFC 3339 time or date", metavar="TIME"),
    ]
    made += [_flag(name, _meaning(name), multiple=True, type=_type(name)) for name in TEXT_FILTERS]
    made.append(_flag("tool", "A tool that the model used", multiple=True, type=UNICODE))
    made.append(
        _flag("tag", "A tag; of several an event must have all", multiple=True, type=UNICODE, metavar="KEY:TEXT")
    )
    made.append(_flag("kind", "Calls to models, other steps, or both", multiple=True, type=click.Choice(ALL_KINDS)))
    made += [_flag(name, _bound(name), type=str, metavar="NUMBER") for name in _ONCE[:4]]
    made.append(_flag("not", "Leave out, like `model=gpt-4o`", multiple=True, type=UNICODE, metavar="FILTER=TEXT"))
    for add in reversed(made):
        command = add(command)
    return command


def filters_of(flags: dict[str, Any]) -> Params:
    """Take the values of `filter_options` out of the flags, as query parameters."""
    found: Params = [(name, value) for name in _MANY for value in flags.pop(name)]
    found += [(name, value) for name in _ONCE if (value := flags.pop(name)) is not None]
    for text in flags.pop("not"):
        name, sign, value = text.partition("=")
        if not sign:
            fail(f"--not must be FILTER=TEXT, like --not model=gpt-4o, and not {text}")
        found.append((f"{name}!", value))
    return found


def given(flags: dict[str, Any], names: Iterable[str]) -> Params:
    """Take other flags out, as query parameters of the same names; those that are not given are left out."""
    return [(name, str(value)) for name in names if (value := flags.pop(name)) is not None]


def _flag(name: str, text: str, **more: Any) -> Callable[[F], F]:
    return click.option(f"--{name.replace('_', '-')}", name, cls=GroupedOption, group=FILTERS, help=text, **more)


def _type(name: str) -> click.ParamType:
    return click.Choice(CHOICES[name]) if name in CHOICES else UNICODE


def _meaning(name: str) -> str:
    if name == "event_id":
        return "The event"
    return f"{_MEANINGS[name]}; empty: none" if name in {"user_id", "session_id"} else _MEANINGS[name]


def _bound(name: str) -> str:
    least, _, field = name.partition("_")
    what = {"cost_usd": "dollars", "latency_ms": "milliseconds"}[field]
    return f"{'At least' if least == 'min' else 'At most'} so many {what}"
