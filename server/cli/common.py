"""Helpers of several commands: settings, errors that end a command, and the log of the data directory."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NoReturn, TypeVar

import click

from processor.log.address import LogAddress
from processor.log.errors import LogError
from processor.log.port import LogWriter
from processor.settings import CONFIG_VARIABLE, Settings, SettingsError, load
from server.cli.output import say

EXIT_USAGE: Final = 2


class _Unicode(click.ParamType):
    """A name or an id, decoded as UTF-8 in any locale: Python leaves bytes that the locale does not have undecoded."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text: str = value
        try:
            text.encode()
        except UnicodeEncodeError:
            try:
                return os.fsencode(text).decode()
            except UnicodeError:
                self.fail("it is not valid UTF-8", param, ctx)
        return text


UNICODE: Final = _Unicode()
"""The type of arguments that name something in the log, unlike names of files."""


def export(flags: dict[str, Any]) -> None:
    """Put the given flags into the environment, where this process and its children read them as settings."""
    config = flags.pop("config", None)
    if config is not None:
        os.environ[CONFIG_VARIABLE] = config
    os.environ.update({f"SPENDSTREAM_{name.upper()}": str(value) for name, value in flags.items() if value is not None})


S = TypeVar("S", bound=Settings)


def load_or_exit(kind: type[S], flags: dict[str, Any]) -> S:
    """Return the settings; end the program with a list of all faults if there are any."""
    export(flags)
    try:
        return load(kind)
    except SettingsError as error:
        context = click.get_current_context(silent=True)
        command = "spendstream" if context is None else context.command_path
        hint = f"each can be a flag, a variable or a line of the TOML file: `{command} --help` lists them"
        fail(*str(error).split("\n"), hint)


def fail(*lines: str) -> NoReturn:
    """Print `lines` as an error and end the program with exit code 2."""
    first, *others = lines
    say(f"spendstream: {first}", *others, err=True)
    sys.exit(EXIT_USAGE)


def fail_to_start(error: Exception) -> NoReturn:
    """End a role that cannot start; of an `OSError` only its text is printed, without the number."""
    text = error.strerror if isinstance(error, OSError) and error.filename is None else None
    fail(text or str(error))


@contextmanager
def open_log(flags: dict[str, Any], *, create: bool = False) -> Iterator[LogWriter]:
    """Open the log of the settings, beside a running server or without one; with `create` make it if there is none."""
    settings = load_or_exit(Settings, flags)
    try:
        log = LogAddress.of(settings).open(settings.partitions if create else None, create=create)
    except LogError as error:
        fail(str(error))
    try:
        yield log
    except LogError as error:
        fail(str(error))
    finally:
        log.close()
