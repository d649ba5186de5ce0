"""A stand-in for the APIs of model providers on this machine, which remembers the calls it answered.

OpenAI's chat completions, responses and embeddings, Anthropic's messages and Gemini's generateContent, whole and
streamed, in the form in which the providers document them. The prompt says what a call costs and how it goes: `in=1200
cached=1000 write=0 hourly=0 out=300 thought=200 status=429 wait=2`, each with a default; the last of a kind counts.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from aiohttp import web

DATED: Final = {
    "gpt-4o": "gpt-4o-2024-08-06",
    "gpt-4o-mini": "gpt-4o-mini-2024-07-18",
    "o4-mini": "o4-mini-2025-04-16",
}
"""The names that OpenAI answers with for those that it is asked for."""

TEXT: Final = "Hello there"
JsonObject = dict[str, Any]


@dataclass(frozen=True)
class Call:
    """A call as it is to be charged: input includes what is cached and written, output what is thought."""

    provider: str
    model: str
    operation: str
    input_tokens: int = 100
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 20
    reasoning_tokens: int = 0
    status: str = "success"
    stream: bool = False
    cache_write_1h_tokens: int = 0
    """Those of `cache_write_tokens` that are kept for an hour."""


@dataclass
class ModelApi:
    """The server's state; `calls` has what came in, in order, failed ones included."""

    port: int = 0
    calls: list[Call] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Its root, without a path."""
        return f"http://127.0.0.1:{self.port}"

    def as_json(self) -> str:
        """The calls, one a line."""
        return "[\n" + ",\n".join(json.dumps(asdict(call)) for call in self.calls) + "\n]\n"

    # --- the paths --------------------------------------------------------------------------------------------------

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/chat/completions."""
        body = await request.json()
        call = await self._received("openai", body["model"], "chat", body, body["messages"])
        usage = _openai_usage(call, "prompt", "completion")
        head = {"id": f"chatcmpl-{len(self.calls)}", "created": 1776679200, "model": call.model}
        message: JsonObject = {"role": "assistant", "content": TEXT, "refusal": None}
        if _wants_tool(body):
            made = {"name": _tool_name(body), "arguments": '{"city":"Paris"}'}
            message |= {"content": None, "tool_calls": [{"id": "call_1", "type": "function", "function": made}]}
        reason = "tool_calls" if "tool_calls" in message else "stop"
        if call.stream:
            head |= {"object": "chat.completion.chunk"}
            return await _sse(request, _chat_chunks(head, message, reason, usage, body))
        choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}
        return web.json_response({**head, "object": "chat.completion", "choices": [choice], "usage": usage})

    async def responses(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/responses."""
        body = await request.json()
        call = await self._received("openai", body["model"], "chat", body, body["input"])
        content = [{"type": "output_text", "text": TEXT, "annotations": [], "logprobs": []}]
        item: JsonObject = {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": content,
        }
        if _wants_tool(body):
            made = {"call_id": "call_1", "name": _tool_name(body), "arguments": '{"city":"Paris"}'}
            item = {"id": "fc_1", "type": "function_call", "status": "completed", **made}
        answer = {
            "id": f"resp_{len(self.calls)}",
            "object": "response",
            "created_at": 1776679200,
            "status": "completed",
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "metadata": {},
            "model": call.model,
            "output": [item],
            "parallel_tool_calls": True,
            "temperature": 1.0,
            "tool_choice": "auto",
            "tools": [],
            "top_p": 1.0,
            "usage": _openai_usage(call, "input", "output"),
        }
        if not call.stream:
            return web.json_response(answer)
        return await _sse(request, _response_events(answer, item), named=True)

    async def embeddings(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/embeddings."""
        body = await request.json()
        call = await self._received("openai", body["model"], "embed", body, body["input"])
        usage = {"prompt_tokens": call.input_tokens, "total_tokens": call.input_tokens}
        count = len(body["input"]) if isinstance(body["input"], list) else 1
        vector = "AACAPwAAAAA=" if body.get("encoding_format") == "base64" else [1.0, 0.0]
        data = [{"object": "embedding", "index": index, "embedding": vector} for index in range(count)]
        return web.json_response({"object": "list", "data": data, "model": call.model, "usage": usage})

    async def messages(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/messages, of Anthropic: its input tokens are those that are neither read nor written."""
        body = await request.json()
        call = await self._received("anthropic", body["model"], "chat", body, body["messages"])
        usage: JsonObject = {
            "input_tokens": call.input_tokens - call.cached_tokens - call.cache_write_tokens,
            "cache_creation_input_tokens": call.cache_write_tokens,
            "cache_read_input_tokens": call.cached_tokens,
            "cache_creation": {
                "ephemeral_5m_input_tokens": call.cache_write_tokens - call.cache_write_1h_tokens,
                "ephemeral_1h_input_tokens": call.cache_write_1h_tokens,
            },
            "output_tokens": call.output_tokens,
            "service_tier": "standard",
        }
        answer: JsonObject = {
            "id": f"msg_{len(self.calls)}",
            "type": "message",
            "role": "assistant",
            "model": call.model,
            "content": [{"type": "text", "text": TEXT}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": usage,
        }
        if not call.stream:
            return web.json_response(answer)
        return await _sse(request, _message_events(answer), named=True)

    async def generate(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/models/{model}:generateContent, of Gemini: thoughts are not among the candidates' tokens."""
        body = await request.json()
        model, _, verb = request.match_info["call"].partition(":")
        body["stream"] = verb == "streamGenerateContent"
        call = await self._received("google", model, "chat", body, body["contents"])
        usage: JsonObject = {
            "promptTokenCount": call.input_tokens,
            "candidatesTokenCount": call.output_tokens - call.reasoning_tokens,
            "totalTokenCount": call.input_tokens + call.output_tokens,
        }
        if call.cached_tokens:
            usage["cachedContentTokenCount"] = call.cached_tokens
        if call.reasoning_tokens:
            usage["thoughtsTokenCount"] = call.reasoning_tokens
        content = {"role": "model", "parts": [{"text": TEXT}]}
        answer = {
            "candidates": [{"content": content, "finishReason": "STOP", "index": 0}],
            "usageMetadata": usage,
            "modelVersion": model,
            "responseId": f"gem_{len(self.calls)}",
        }
        return await _sse(request, [answer], end="") if call.stream else web.json_response(answer)

    async def _received(self, provider: str, model: str, operation: str, body: JsonObject, prompt: object) -> Call:
        """Note the call and wait as long as it asks for; raises what it asks for."""
        said = {name: int(value) for name, value in re.findall(r"\b([a-z]+)=(\d+)", json.dumps(prompt))}
        status = said.get("status", 200)
        call = Call(
            provider,
            DATED.get(model, model),
            operation,
            said.get("in", 100),
            said.get("cached", 0),
            said.get("write", 0),
            said.get("out", 20) if operation != "embed" else 0,
            said.get("thought", 0),
            "timeout" if "wait" in said else {200: "success", 429: "rate_limited"}.get(status, "error"),
            bool(body.get("stream")),
            said.get("hourly", 0),
        )
        self.calls.append(call)
        await asyncio.sleep(said.get("wait", 0))
        if status != 200:
            fault = {"type": "rate_limit_error" if status == 429 else "api_error", "message": "as it was asked for"}
            text = json.dumps({"type": "error", "error": {**fault, "code": status, "param": None}})
            raise _Refused(status, text)
        return call


class _Refused(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


@web.middleware
async def _refusals(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        answer: web.StreamResponse = await handler(request)
    except _Refused as refused:
        return web.Response(status=refused.status, text=refused.text, content_type="application/json")
    return answer


@asynccontextmanager
async def model_api() -> AsyncIterator[ModelApi]:
    """On a free port of this machine."""
    made = ModelApi()
    app = web.Application(middlewares=[_refusals])
    app.router.add_post("/v1/chat/completions", made.chat)
    app.router.add_post("/v1/responses", made.responses)
    app.router.add_post("/v1/embeddings", made.embeddings)
    app.router.add_post("/v1/messages", made.messages)
    app.router.add_post("/{version:v1|v1beta}/models/{call}", made.generate)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.port = runner.addresses[0][1]
    try:
        yield made
    finally:
        await runner.cleanup()


# --- the forms ------------------------------------------------------------------------------------------------------


def _openai_usage(call: Call, into: str, out: str) -> JsonObject:
    return {
        f"{into}_tokens": call.input_tokens,
        f"{into}_tokens_details": {"cached_tokens": call.cached_tokens},
        f"{out}_tokens": call.output_tokens,
        f"{out}_tokens_details": {"reasoning_tokens": call.reasoning_tokens},
        "total_tokens": call.input_tokens + call.output_tokens,
    }


def _wants_tool(body: JsonObject) -> bool:
    """Whether tools were offered, and none was used yet."""
    said = json.dumps(body.get("messages") or body.get("input"))
    return bool(body.get("tools")) and '"tool_call_id"' not in said and '"function_call_output"' not in said


def _tool_name(body: JsonObject) -> str:
    tool: JsonObject = body["tools"][0]
    return str(tool.get("name") or tool["function"]["name"])


def _chat_chunks(
    head: JsonObject, message: JsonObject, reason: str, usage: JsonObject, body: JsonObject
) -> Iterator[JsonObject]:
    calls = [{"index": 0, **each} for each in message.get("tool_calls", [])]
    delta = {"role": "assistant", **({"tool_calls": calls} if calls else {"content": message["content"]})}
    yield {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
    yield {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}
    if (body.get("stream_options") or {}).get("include_usage"):
        yield {**head, "choices": [], "usage": usage}


def _response_events(answer: JsonObject, item: JsonObject) -> Iterator[JsonObject]:
    begun = {**answer, "status": "in_progress", "output": [], "usage": None}
    place = {"output_index": 0, "item_id": item["id"]}
    events: list[JsonObject] = [{"type": "response.created", "response": begun}]
    if item["type"] == "message":
        part = {**place, "content_index": 0}
        events += [
            {"type": "response.output_item.added", "output_index": 0, "item": {**item, "content": []}},
            {"type": "response.content_part.added", **part, "part": {**item["content"][0], "text": ""}},
            {"type": "response.output_text.delta", **part, "delta": TEXT, "logprobs": []},
            {"type": "response.output_text.done", **part, "text": TEXT, "logprobs": []},
            {"type": "response.content_part.done", **part, "part": item["content"][0]},
        ]
    else:
        events += [
            {"type": "response.output_item.added", "output_index": 0, "item": {**item, "arguments": ""}},
            {"type": "response.function_call_arguments.done", **place, "arguments": item["arguments"]},
        ]
    events += [
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": answer},
    ]
    return ({**event, "sequence_number": number} for number, event in enumerate(events))


def _message_events(answer: JsonObject) -> Iterator[JsonObject]:
    usage = answer["usage"]
    begun = {**answer, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 1}}
    yield {"type": "message_start", "message": begun}
    yield {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    yield {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": TEXT}}
    yield {"type": "content_block_stop", "index": 0}
    delta = {"stop_reason": "end_turn", "stop_sequence": None}
    yield {"type": "message_delta", "delta": delta, "usage": {"output_tokens": usage["output_tokens"]}}
    yield {"type": "message_stop"}


async def _sse(
    request: web.Request,
    events: Sequence[JsonObject] | Iterator[JsonObject],
    *,
    named: bool = False,
    end: str = "data: [DONE]\n\n",
) -> web.StreamResponse:
    """Answer with server-sent events; `named` ones have their type as the event's name, and no end."""
    answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await answer.prepare(request)
    for event in events:
        head = f"event: {event['type']}\n" if named else ""
        await answer.write(f"{head}data: {json.dumps(event)}\n\n".encode())
    if not named:
        await answer.write(end.encode())
    await answer.write_eof()
    return answer
