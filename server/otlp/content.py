"""Attributes with prompts and completions, which `SPENDSTREAM_OTLP_CONTENT=drop` leaves out."""

from typing import Final, Literal

Content = Literal["keep", "drop"]

NAMES: Final = frozenset(
    {
        "gen_ai.prompt",
        "gen_ai.completion",
        "gen_ai.input.messages",
        "gen_ai.output.messages",
        "gen_ai.system_instructions",
        "gen_ai.system.message",
        "gen_ai.tool.definitions",
        "gen_ai.tool.call.arguments",
        "gen_ai.tool.call.result",
        "gen_ai.tool.message",
        "gen_ai.retrieval.documents",
        "gen_ai.retrieval.query.text",
        "gen_ai.event.content",
        "gen_ai.content.prompt",
        "gen_ai.content.completion",
        "gen_ai.input",
        "gen_ai.output",
        "gen_ai.embeddings.input",
        "input.value",
        "output.value",
        "llm.prompts",
        "llm.completions",
        "llm.input_messages",
        "llm.output_messages",
        "llm.tools",
        "llm.function_call",
        "llm.prompt_template.template",
        "llm.prompt_template.variables",
        "tool.parameters",
        "tool_call.function.arguments",
        "traceloop.entity.input",
        "traceloop.entity.output",
        "ai.prompt",
        "ai.prompt.messages",
        "ai.prompt.tools",
        "ai.response.text",
        "ai.response.object",
        "ai.response.reasoning",
        "ai.response.toolCalls",
        "ai.response.files",
        "ai.result.text",
        "ai.result.object",
        "ai.result.toolCalls",
        "ai.toolCall.args",
        "ai.toolCall.input",
        "ai.toolCall.result",
        "ai.toolCall.output",
        "ai.schema",
        "ai.value",
        "ai.values",
        "ai.embedding",
        "ai.embeddings",
        "all_messages_events",
        "pydantic_ai.all_messages",
        "final_result",
        "tool_arguments",
        "tool_response",
        "events",
        "body",
        "content",
        "message",
    }
)
"""Whole names."""

PREFIXES: Final = (
    "gen_ai.prompt.",
    "gen_ai.completion.",
    "gen_ai.input.messages.",
    "gen_ai.output.messages.",
    "llm.prompts.",
    "llm.completions.",
    "llm.input_messages.",
    "llm.output_messages.",
    "llm.request.functions.",
    "llm.tools.",
    "retrieval.documents.",
    "reranker.input_documents.",
    "reranker.output_documents.",
    "reranker.query",
    "embedding.embeddings.",
    "embedding.text",
    "db.query.result.",
    "ai.prompt.",
)
"""What a name begins with."""

_PLAIN_UNDER_PROMPT: Final = frozenset({"gen_ai.prompt.version", "gen_ai.completion.0.finish_reason"})


def is_content(name: str) -> bool:
    """Whether an attribute has something of a prompt, a completion, or what a tool was given or gave."""
    return name in NAMES or (name.startswith(PREFIXES) and name not in _PLAIN_UNDER_PROMPT)
