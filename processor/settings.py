"""Settings that every role has. They come from flags, then `SPENDSTREAM_*` variables, then a TOML file."""

import os
import re
import tomllib
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

PREFIX: Final = "SPENDSTREAM_"
"""How the name of a setting's variable begins."""

CONFIG_VARIABLE = "SPENDSTREAM_CONFIG"
CONFIG_FILE = "spendstream.toml"


class SettingsError(Exception):
    """One or more settings are wrong; the text lists all of them."""


def _broker(value: str) -> str:
    if value == "sqlite://" or _KAFKA(value):
        return value
    raise ValueError("must be sqlite:// (the embedded log in the data directory) or kafka://host:port;host:port")


def _prefix(value: str) -> str:
    if _PREFIX(value):
        return value
    raise ValueError(
        "must be 2 to 100 letters, digits, dots, dashes or underscores that begin with a letter or digit and end with "
        "one of the others, like spendstream. or team-a."
    )


_PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,98}[._-]").fullmatch
_KAFKA = re.compile(r"kafka://[^\s;,/:]+(:[0-9]{1,5})?(;[^\s;,/:]+(:[0-9]{1,5})?)*").fullmatch


def _size(value: object) -> object:
    found = _SIZE(value.strip()) if isinstance(value, str) else None
    if found is None:
        return value
    number, unit = found.groups()
    return int(Fraction(number) * _UNITS[(unit or "b").lower()])


_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([bkmgt]|[kmgt]ib)?", re.IGNORECASE).fullmatch
_UNITS = {"b": 1} | {unit: 1024**power for power, name in enumerate("kmgt", 1) for unit in (name, f"{name}ib")}
Size = Annotated[int, BeforeValidator(_size)]
"""A number of bytes, like 1073741824, 512MiB or 2 GiB."""


def in_full(name: str) -> Path:
    """Return the path of a file or directory as it was named, `~` as the home directory. Raises `ValueError`."""
    if not name.strip():  # it would be the current directory
        raise ValueError("must not be empty: name a file or directory, or leave the setting out")
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise ValueError(f"there is no home directory of {name.partition('/')[0]}: write the path in full") from None


def _path(value: object) -> object:
    return in_full(value) if isinstance(value, str) else value


PATH: Final = BeforeValidator(_path)
"""For each setting that names a file or directory."""


class Settings(BaseModel):
    """The settings of the worker, which all other roles have too."""

    model_config = ConfigDict(extra="ignore", validate_default=True)

    data_dir: Annotated[Path, PATH] = Field(
        Path(".spendstream"), description="Directory of everything that must survive a restart"
    )
    broker: Annotated[str, AfterValidator(_broker)] = Field(
        "sqlite://", description="The log: sqlite:// (one file in the data directory) or kafka://host:port;host:port"
    )
    partitions: int | None = Field(
        None, ge=1, le=1024, description="Partitions of the log; cannot be changed after the log is made"
    )
    dedupe_horizon: int = Field(0, ge=0, description="Days after which an event_id may be forgotten; 0: never")
    retention: int = Field(
        0,
        ge=0,
        le=36_500,
        description="Days after which events may be deleted, from the log and the event store; on Kafka from the store "
        "only; 0: never",
    )
    retention_interval: float = Field(60, ge=0.05, description="Seconds between two checks for events past retention")
    event_store: bool = Field(
        True, description="Keep the events in a store of their own, and answer questions about them; off: sums only"
    )
    store_dir: Annotated[Path | None, PATH] = Field(
        None,
        description="Directory of the event store; on Kafka one that all stores and queries see. Not given: events in "
        "the data directory",
    )
    store_min_free: Size | None = Field(
        None,
        ge=0,
        description="Bytes of its file system that the event store leaves free, like 4GiB. Not given: 2 GiB, or 5 % "
        "where that is more",
    )
    payload_retention: int | None = Field(
        None,
        ge=1,
        le=36_500,
        description="Days after which unknown fields and error messages go from the event store. Not given: with their "
        "events",
    )
    store_scrub: float = Field(
        7,
        ge=0,
        le=3650,
        description="Days in which every file of the event store is read once and compared with its digest; what a "
        "disk has changed is made anew from the log. 0: never",
    )
    flush_interval: float = Field(0.1, ge=0.005, le=5, description="Seconds between two flushes of the changed rows")
    kafka_prefix: Annotated[str, AfterValidator(_prefix)] = Field(
        "spendstream.",
        description="Prefix of the names of topics, consumer groups and transactional ids: one for each product",
    )
    kafka_security: Literal["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"] | None = Field(
        None, description="Protocol of the connections to Kafka"
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = Field(
        None, description="SASL mechanism"
    )
    kafka_username: str | None = Field(None, description="SASL user")
    kafka_password: str | None = Field(None, description="SASL password")
    kafka_ca: Annotated[Path | None, PATH] = Field(None, description="PEM certificates of the authorities to trust")
    kafka_cert: Annotated[Path | None, PATH] = Field(None, description="PEM certificate of this client, for mutual TLS")
    kafka_key: Annotated[Path | None, PATH] = Field(None, description="PEM private key of that certificate")
    kafka_replication: int = Field(
        3, ge=1, le=9, description="Copies of each partition when topics are made; no more than there are brokers"
    )
    standby: bool = Field(
        True, description="On Kafka: keep a warm copy of the partitions that other workers own, for a fast takeover"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Lowest level that is logged")
    log_format: Literal["auto", "console", "json"] = Field(
        "auto", description="Form of the log's lines; auto is console on a terminal and json elsewhere"
    )
    traces: bool = Field(
        False, description="Export OpenTelemetry traces by OTLP/HTTP, to where the OTEL_* variables say"
    )

    @property
    def segments_dir(self) -> Path:
        """The directory of the event store."""
        return self.store_dir or self.data_dir / "events"


S = TypeVar("S", bound=Settings)


def load(kind: type[S], **flags: Any) -> S:
    """Read the settings; `flags` that are None were not given. Raises `SettingsError` with all faults."""
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        settings = kind.model_validate({**_from_file(), **_from_variables(kind, os.environ), **given})
    except ValidationError as error:
        lines = [f"  {_of_setting(fault['loc'])}{fault['msg'].removeprefix(_OWN)}" for fault in error.errors()]
        raise SettingsError("wrong settings:\n" + "\n".join(lines)) from None
    except (ValueError, OSError) as error:  # the file is not TOML, or may not be read
        raise SettingsError(f"cannot read {os.environ.get(CONFIG_VARIABLE, CONFIG_FILE)}: {error}") from None
    settings.data_dir = settings.data_dir.absolute()
    if settings.store_dir is not None:
        settings.store_dir = settings.store_dir.absolute()
    return settings


def _from_variables(kind: type[Settings], variables: Mapping[str, str]) -> dict[str, str]:
    """Return the fields of `kind` that have a variable, in whatever case it is written."""
    found = {name.upper(): value for name, value in variables.items()}
    names = {name: f"{PREFIX}{name.upper()}" for name in kind.model_fields}
    return {name: found[variable] for name, variable in names.items() if variable in found}


def _from_file() -> dict[str, Any]:
    """Return what the TOML file has; nothing if none is named and there is none. Raises `SettingsError` if one is named
    and is missing, and `ValueError` if it is not TOML.

    A pipe is no such file: the processes of `serve` read it one after the other.
    """
    named = os.environ.get(CONFIG_VARIABLE)
    path = Path(os.path.expanduser(CONFIG_FILE if named is None else named))  # noqa: PTH111 - it raises for no user
    if path.is_file() or named == os.devnull:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    if named is None:
        return {}
    raise SettingsError(
        f"there is no file {named or '(the name is empty)'} (--config, {CONFIG_VARIABLE}): name a TOML file, or leave "
        "it out"
    )


def _of_setting(location: tuple[int | str, ...]) -> str:
    """Return how a fault begins; one of several settings names them itself."""
    return f"{PREFIX}{str(location[0]).upper()}: " if location else ""


_OWN: Final = "Value error, "
"""What pydantic puts before the texts of this program."""
