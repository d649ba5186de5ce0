"""Settings of the API process and of `serve`, in addition to those that every role has."""

import re
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from processor.core.events.event import Handling
from processor.settings import PATH, Settings, Size
from server.alerts.signing import secret_bytes
from server.otlp.content import Content
from server.otlp.kinds import Which
from server.prices import prices_setting
from server.processes.listening_ports import is_local
from server.processes.siblings import MAX_PROCESSES
from server.tenancy.keys import is_well_formed


def _bind(value: str) -> str:
    host, _, port = value.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"must be host:port, like 127.0.0.1:8080 (port 0 takes a free one), not {value!r}")
    return value


def _key(value: str | None) -> str | None:
    if value is not None and not is_well_formed(value):
        raise ValueError("must be lqt_ and 64 hex characters")
    return value


def _url(value: str | None) -> str | None:
    if value is not None and not (value.startswith(("https://", "http://")) and _HOST(value)):
        raise ValueError("must be https:// and an address, without user and password")
    return value


_HOST = re.compile(r"https?://[^\s/@?#]+(/[^\s@]*)?").fullmatch


def _webhook_secret(value: str | None) -> str | None:
    if value is not None:
        secret_bytes(value)
    return value


class ServerSettings(Settings):
    """The settings of `api` and `serve`."""

    http_bind: Annotated[str, AfterValidator(_bind)] = Field(
        "127.0.0.1:8080", description="Address of the HTTP API, host:port; port 0 takes a free one"
    )
    grpc_bind: Annotated[str, AfterValidator(_bind)] = Field(
        "127.0.0.1:50051", description="Address of the gRPC API, host:port; port 0 takes a free one"
    )
    api_processes: int = Field(
        1,
        ge=1,
        le=MAX_PROCESSES,
        description="API processes of `serve`, which share both ports: one for each core to use",
    )
    handling: Handling = Field(
        "partial",
        description="What becomes of a batch with bad events, if neither the request nor its key says: partial accepts "
        "the others, strict refuses it, lenient fills in what is missing",
    )
    bootstrap_key: Annotated[str | None, AfterValidator(_key)] = Field(
        None, description="A full lqt_ key to create on the first start, instead of a random one"
    )
    prices: Annotated[str, AfterValidator(prices_setting.check)] = Field(
        prices_setting.BUILTIN,
        description="Prices of events without a cost: builtin, off, or a TOML file of own prices to ask before that",
    )
    max_pending_mib: int = Field(
        64, ge=1, le=4096, description="MiB of events that may wait for the disk before ingest answers 503"
    )
    max_lag: float = Field(
        30, gt=0, description="Seconds without progress of the worker, with work waiting, after which /readyz is 503"
    )
    tls_cert: Annotated[Path | None, PATH] = Field(None, description="PEM certificate chain: TLS for both APIs")
    tls_key: Annotated[Path | None, PATH] = Field(None, description="PEM private key of the certificate")

    max_users: int = Field(10_000_000, ge=1, description="Users of a project; events of further users are rejected")
    max_models: int = Field(10_000, ge=1, description="Models of a project; events of further models are rejected")
    max_environments: int = Field(
        1_000, ge=1, description="Environments of a project; events of further environments are rejected"
    )
    max_days: int = Field(
        4_000,
        ge=1,
        description="UTC days of a project's events, by their own time; events of further days are rejected",
    )
    max_rows: int = Field(
        20_000_000, ge=1, description="Rows of all kinds of a project; events that need new ones are rejected"
    )
    otlp_spans: Which = Field(
        "genai",
        description="Spans of OTLP that are kept: `genai`, those of models and what works with them, or `all`",
    )
    otlp_content: Content = Field(
        "keep", description="Prompts and completions in spans that come over OTLP: keep them, or drop them at intake"
    )
    alert_webhook: Annotated[str | None, AfterValidator(_url)] = Field(
        None,
        description="https:// address to notify when 80 and 100 % of a quota is used, or a budget is reached",
    )
    alert_secret: Annotated[str | None, AfterValidator(_webhook_secret)] = Field(
        None, description="whsec_ and base64: the key that signs those notifications"
    )
    alert_allow_private: bool = Field(
        False, description="Allow a webhook with http://, or at an address of this machine or network"
    )
    query_memory: Size = Field(
        1 << 30,
        ge=256 << 20,
        description="Bytes of memory for the process that answers questions about events, like 2GiB",
    )
    query_threads: int = Field(1, ge=1, le=64, description="Threads of one question about events")
    query_timeout: float = Field(10, ge=0.1, le=3600, description="Seconds that a question about events may take")
    access_log: bool = Field(False, description="Log a line for each request and gRPC call")
    insecure: bool = Field(False, description="Allow listening beyond this machine without TLS, as behind a proxy")

    @model_validator(mode="after")
    def _alerts_are_signed(self) -> Self:
        if self.alert_webhook is not None and self.alert_secret is None:
            raise ValueError("SPENDSTREAM_ALERT_WEBHOOK needs SPENDSTREAM_ALERT_SECRET, to sign what is sent")
        if (self.alert_webhook or "").startswith("http://") and not self.alert_allow_private:
            raise ValueError("SPENDSTREAM_ALERT_WEBHOOK must be https://, unless SPENDSTREAM_ALERT_ALLOW_PRIVATE=true")
        return self

    @model_validator(mode="after")
    def _public_means_tls(self) -> Self:
        public = [bind for bind in (self.http_bind, self.grpc_bind) if not is_local(bind)]
        if public and self.tls_cert is None and not self.insecure:
            raise ValueError(
                f"{' and '.join(public)} can be reached from other machines, and keys would travel unencrypted: "
                "give SPENDSTREAM_TLS_CERT and SPENDSTREAM_TLS_KEY, or SPENDSTREAM_INSECURE=true (--insecure) if "
                "something in front of it has TLS"
            )
        return self

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("SPENDSTREAM_TLS_CERT and SPENDSTREAM_TLS_KEY go together: give both or neither")
        return self
