"""The settings as flags, named like their variables, with type, limits, default and variable in the help.

Flags stay text here: `processor.settings.load` reads them together with the variables and the file, so that one error
lists every fault.
"""

import types
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import click
from pydantic.fields import FieldInfo

from processor.settings import CONFIG_FILE, CONFIG_VARIABLE, Settings
from server.cli.grouped_help import GroupedOption

F = TypeVar("F", bound=Callable[..., Any])

GROUPS: Final[dict[str, tuple[str, ...]]] = {
    "Log and data": (
        "data_dir",
        "broker",
        "partitions",
        "dedupe_horizon",
        "retention",
        "retention_interval",
        "flush_interval",
    ),
    "Event store": (
        "event_store",
        "store_dir",
        "store_min_free",
        "store_scrub",
        "payload_retention",
        "query_memory",
        "query_threads",
        "query_timeout",
    ),
    "APIs": (
        "http_bind",
        "grpc_bind",
        "api_processes",
        "handling",
        "prices",
        "otlp_spans",
        "otlp_content",
        "bootstrap_key",
        "tls_cert",
        "tls_key",
        "insecure",
    ),
    "Limits": (
        "max_pending_mib",
        "max_lag",
        "max_users",
        "max_models",
        "max_environments",
        "max_days",
        "max_rows",
    ),
    "Alerts": ("alert_webhook", "alert_secret", "alert_allow_private"),
    "Kafka": (
        "kafka_prefix",
        "kafka_security",
        "kafka_sasl_mechanism",
        "kafka_username",
        "kafka_password",
        "kafka_ca",
        "kafka_cert",
        "kafka_key",
        "kafka_replication",
        "standby",
    ),
    "Logs and traces": ("log_level", "log_format", "access_log", "traces"),
}
"""Heading in the help -> the settings under it."""

SECRETS: Final = frozenset({"kafka_password", "bootstrap_key", "alert_secret"})

SEEN_BY_ALL: Final = "Prefer the variable: other users of this machine can see the flags of its processes"
"""What the help says of a flag that takes a secret."""


class SettingOption(GroupedOption):
    """The flag of one setting; a switch (`--name`, `--no-name`) if the setting is a boolean.

    A switch also takes a value (`--name true`), as in earlier versions; the help does not show that.
    """

    def __init__(self, declarations: Sequence[str], *, field: FieldInfo, group: str) -> None:
        """`declarations` are the flag and the name of the setting."""
        name = declarations[1]
        text = f"{field.description}. {SEEN_BY_ALL}" if name in SECRETS else field.description
        self.is_switch = field.annotation is bool
        value: dict[str, Any] = {"flag_value": "true"} if self.is_switch else {}
        super().__init__(declarations, group=group, help=text, metavar=_metavar(name, field), is_flag=False, **value)
        self.variable = f"SPENDSTREAM_{name.upper()}"
        self.field = field

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return the flag and its help; both forms of a switch."""
        record = super().get_help_record(ctx)
        if record is None or not self.is_switch:
            return record
        name = self.opts[0]
        return f"{name} / --no-{name.removeprefix('--')}", record[1]

    def get_help_extra(self, ctx: click.Context) -> click.types.OptionHelpExtra:
        """Return what the help shows in brackets: variable, default and limits of the setting."""
        extra: click.types.OptionHelpExtra = {"envvars": (self.variable,)}
        if self.field.default is not None:
            default = self.field.default
            extra["default"] = ("on" if default else "off") if self.is_switch else str(default)
        if limits := _limits(self.field):
            extra["range"] = limits
        return extra


def settings_options(kind: type[Settings], *names: str) -> Callable[[F], F]:
    """Add a flag for each field of `kind` (or only for `names`), and `--config`, under the headings of `GROUPS`."""

    def decorate(command: F) -> F:
        for group, name, field in reversed(list(_fields(kind, names))):
            flag = name.replace("_", "-")
            if field.annotation is bool:
                command = click.option(f"--no-{flag}", name, flag_value="false", hidden=True)(command)
            command = click.option(f"--{flag}", name, cls=SettingOption, field=field, group=group)(command)
        text = f"TOML file with settings  [env var: {CONFIG_VARIABLE}; default: {CONFIG_FILE}]"
        first = next(iter(GROUPS))
        return click.option("--config", cls=GroupedOption, group=first, metavar="FILE", help=text)(command)

    return decorate


def _fields(kind: type[Settings], names: tuple[str, ...]) -> Iterator[tuple[str, str, FieldInfo]]:
    for group, members in GROUPS.items():
        for name in members:
            if name in kind.model_fields and (not names or name in names):
                yield group, name, kind.model_fields[name]


# --- the type of a setting, for people -------------------------------------------------------------------------------


_FORMS: Final = {
    "broker": "URL",
    "http_bind": "HOST:PORT",
    "grpc_bind": "HOST:PORT",
    "alert_webhook": "URL",
    "prices": "[builtin|off|FILE]",
}


def _metavar(name: str, field: FieldInfo) -> str:
    if name in _FORMS:
        return _FORMS[name]
    kind: Any = field.annotation
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:  # None says: not set
        [kind] = [each for each in typing.get_args(kind) if each is not types.NoneType]
    if typing.get_origin(kind) is Literal:
        return f"[{'|'.join(typing.get_args(kind))}]"
    if kind is Path:
        return "DIRECTORY" if name.endswith("_dir") else "FILE"
    return {int: "INTEGER", float: "NUMBER"}.get(kind, "TEXT")


def _limits(field: FieldInfo) -> str:
    """Return the limits in click's form: `1<=x<=1024`."""
    found = {sign: getattr(each, sign) for each in field.metadata for sign in ("ge", "gt", "le") if hasattr(each, sign)}
    least = f"{found['ge']}<=" if "ge" in found else f"{found['gt']}<" if "gt" in found else ""
    most = f"<={found['le']}" if "le" in found else ""
    if least and not most:
        return f"x>{'=' if 'ge' in found else ''}{found.get('ge', found.get('gt'))}"
    return f"{least}x{most}" if least or most else ""
