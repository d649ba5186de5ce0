"""What a span is: a call to a model, another step of an application with models, or something else that is dropped."""

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

from server.otlp.attribute_names import Known, Target

Which = Literal["genai", "all"]
"""Which spans are kept: those of the conventions for models, or all."""

Role = Literal["call", "barrier", "step", "other"]
"""`barrier`: an agent, a tool or a retrieval, below which calls are made for themselves; `step`: any other step of
these conventions; `other`: a span of something else."""

Operation = Literal["chat", "embed", "image", "tts", "custom"]

Found = Mapping[Target, Known]


class Kind(NamedTuple):
    """A span's role, and the operation of a call."""

    role: Role
    operation: Operation = "custom"


OTHER: Final = Kind("other")
_BARRIER: Final = Kind("barrier")
_STEP: Final = Kind("step")
_CHAT: Final = Kind("call", "chat")
_EMBED: Final = Kind("call", "embed")

GEN_AI: Final[dict[str, Kind]] = {
    "chat": _CHAT,
    "text_completion": _CHAT,
    "completion": _CHAT,
    "generate_content": _CHAT,
    "responses": _CHAT,
    "messages": _CHAT,
    "embeddings": _EMBED,
    "embedding": _EMBED,
    "embed": _EMBED,
    "image_generation": Kind("call", "image"),
    "generate_image": Kind("call", "image"),
    "image": Kind("call", "image"),
    "images": Kind("call", "image"),
    "image_edit": Kind("call", "image"),
    "image_variation": Kind("call", "image"),
    "speech": Kind("call", "tts"),
    "text_to_speech": Kind("call", "tts"),
    "generate_speech": Kind("call", "tts"),
    "tts": Kind("call", "tts"),
    "audio": Kind("call", "tts"),
    "speech_to_text": Kind("call", "custom"),
    "transcription": Kind("call", "custom"),
    "transcribe": Kind("call", "custom"),
    "audio_transcription": Kind("call", "custom"),
    "translation": Kind("call", "custom"),
    "execute_tool": _BARRIER,
    "tool": _BARRIER,
    "invoke_agent": _BARRIER,
    "create_agent": _BARRIER,
    "agent": _BARRIER,
    "retrieval": _BARRIER,
    "retrieve": _BARRIER,
}
"""By `gen_ai.operation.name`; any other, like invoke_workflow, is a step."""

OPENINFERENCE: Final[dict[str, Kind]] = {
    "LLM": _CHAT,
    "EMBEDDING": _EMBED,
    "AGENT": _BARRIER,
    "TOOL": _BARRIER,
    "RETRIEVER": _BARRIER,
}
"""By `openinference.span.kind`; any other, like CHAIN or RERANKER, is a step."""

VERCEL: Final[dict[str, Kind]] = {
    "doGenerate": _CHAT,
    "doStream": _CHAT,
    "doEmbed": _EMBED,
    "doEmbedMany": _EMBED,
    "doGenerateImage": Kind("call", "image"),
    "doGenerateSpeech": Kind("call", "tts"),
    "doTranscribe": Kind("call", "custom"),
    "toolCall": _BARRIER,
}
"""By what stands behind the last dot of `ai.operationId`; any other, like ai.generateText, is a step."""

TRACELOOP: Final[dict[str, Kind]] = {"agent": _BARRIER, "tool": _BARRIER}
"""By `traceloop.span.kind`; any other, like workflow or task, is a step."""

REQUEST_TYPE: Final[dict[str, Kind]] = {"chat": _CHAT, "completion": _CHAT, "embedding": _EMBED, "rerank": _STEP}
"""By `llm.request.type`."""


def kind_of(found: Found, name: str) -> Kind:
    """The kind of a span with this name, by what its attributes say.

    The Vercel AI SDK comes first, for it names its wrappers like the calls in other attributes.
    """
    if not found:
        return OTHER
    said = found.get("vercel_operation")
    if said is not None and isinstance(said.value, str):
        return VERCEL.get(said.value.rpartition(".")[2], _STEP)
    said = found.get("operation_name")
    if said is not None and isinstance(said.value, str):
        return GEN_AI.get(said.value.lower(), _STEP)
    said = found.get("openinference_kind")
    if said is not None and isinstance(said.value, str):
        return OPENINFERENCE.get(said.value.upper(), _STEP)
    said = found.get("request_type")
    if said is not None and isinstance(said.value, str):
        kind = REQUEST_TYPE.get(said.value.lower())
        if kind is not None:
            return kind
    said = found.get("traceloop_kind")
    if said is not None and isinstance(said.value, str):
        return TRACELOOP.get(said.value.lower(), _STEP)
    return _kind_unsaid(found, name)


def _kind_unsaid(found: Found, name: str) -> Kind:
    """Instrumentations before 1.27 name no operation: what names a model and a provider or tokens is a call."""
    if "agent" in found:
        return _BARRIER
    if "model" in found and ("provider" in found or "input_tokens" in found or "output_tokens" in found):
        return _EMBED if "embed" in name.lower() else _CHAT
    if "tool" in found:
        return _BARRIER
    return _STEP if "input_tokens" in found or "output_tokens" in found else OTHER


def is_kept(kind: Kind, which: Which) -> bool:
    """Whether an event is made of a span of this kind."""
    return kind.role != "other" or which == "all"


_INFRASTRUCTURE: Final = (
    ("http", ("http.request.method", "http.method", "url.full", "http.url")),
    ("database", ("db.system", "db.system.name")),
    ("rpc", ("rpc.system", "rpc.system.name")),
    ("messaging", ("messaging.system",)),
)

DropReason = Literal["http", "database", "rpc", "messaging", "other"]
"""What a span was of that was dropped."""


def drop_reason(attributes: Mapping[str, object]) -> DropReason:
    """What a span is of that is no step of an application with models."""
    for reason, names in _INFRASTRUCTURE:
        if any(name in attributes for name in names):
            return reason  # type: ignore[return-value] # of the tuple above
    return "other"
