"""The source of answers for `users`, `quota` and `budgets`: a running server, or else the data directory."""

import asyncio
from collections.abc import Callable
from typing import Any, Final, TypeVar

from processor.settings import Settings
from server.cli.common import fail, load_or_exit
from server.cli.output import say
from server.cli.remote import Question, Unanswered, ask, key_option, url_option
from server.cli.settings_flags import settings_options
from server.errors import Reason, Refused
from server.processes import server_address

F = TypeVar("F", bound=Callable[..., Any])

FINAL: Final[frozenset[Reason]] = frozenset({"bad_request", "not_found", "conflict", "too_large"})
"""Refusals by a server that the data directory would repeat, so that it is not tried."""

_URL: Final = (
    "Ask this server only  [default: the server that runs on the data directory, or else the directory itself]"
)


def source_options(command: F) -> F:
    """Add `--url`, `--key`, and the settings that say where the log is."""
    command = settings_options(Settings, "data_dir", "broker")(command)
    return url_option("--url", _URL, default=None)(key_option(required=False)(command))


def _of_named_server(asked: Callable[[str], bytes], url: str) -> bytes:
    """Return what the server answers that was named; end the command if it does not."""
    try:
        return asked(url)
    except Refused as refused:
        fail(refused.message)
    except Unanswered as error:
        fail(f"{error}; start that server, name another one with --url, or leave --url out for the data directory")


def answer(
    flags: dict[str, Any],
    question: Question,
    read: Callable[[dict[str, Any]], bytes],
    what: str | Callable[[dict[str, Any], str | None], str],
    check: Callable[[bytes], None] = lambda body: None,
) -> bytes:
    """Return the JSON that answers a question; end the command if there is no answer.

    `flags` are the values of `source_options`. With an address only that server is asked. Without one it is the server
    that runs on the data directory; if there is none, or it does not answer this key, `read` answers from the log, and
    standard error says so; `what` names the part of it that is used, and may be found by what `read` is given and the
    key. `check` raises `Refused` for a server's answer
    that does not fit the question.
    """

    def asked(server: str) -> bytes:
        body = asyncio.run(ask(server, key, question))
        check(body)
        return body

    url, key = flags.pop("url"), flags.pop("key")
    if url is not None:
        if key is None:
            fail(f"{url} answers only with an API key: give one as SPENDSTREAM_KEY, or with --key")
        return _of_named_server(asked, url)
    settings = load_or_exit(Settings, flags)
    url = server_address.find(settings.data_dir)
    if url is None:
        why = f"no server runs on {settings.data_dir}"
    elif key is None:
        why = f"the server on {settings.data_dir}, {url}, answers only with an API key (SPENDSTREAM_KEY or --key)"
    else:
        try:
            return asked(url)
        except (Refused, Unanswered) as error:
            if isinstance(error, Refused) and error.reason in FINAL:
                fail(str(error))
            why = str(error)
    is_here = settings.broker == "sqlite://"
    place = f"the data directory {settings.data_dir}" if is_here else f"the log at {settings.broker}"
    part = what if isinstance(what, str) else what(dict(flags), key)
    say(f"spendstream: using {place}, {part}: {why}", err=True)
    return read(flags)
