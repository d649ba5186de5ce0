"""The reads of the event store over HTTP: events, traces, sessions, metrics, prompts, and the export."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from aiohttp import web

from server.errors import Refused
from server.explore import question_params
from server.explore.param_list import ALIASES
from server.explore.question_params import Inquiry
from server.explore.questions import Question
from server.http_api.chunked_answers import answer_json
from server.http_api.event_download import download_events
from server.http_api.event_stream import stream_events
from server.http_api.explore_requests import begin_answer, id_in_path, inquiry_of
from server.services import Services

EVENTS: Final = "/v1/events/"
TRACES: Final = "/v1/traces/"
SESSIONS: Final = "/v1/sessions/"

_ANY: Final = r":[\s\S]+}"
"""The end of a path variable that matches anything."""


def add_routes(app: web.Application, services: Services) -> None:
    """Add the routes."""

    def answer(parse: Callable[[Inquiry], Question]) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handler(request: web.Request) -> web.StreamResponse:
            return await _answer(services, request, parse(inquiry_of(services, request)))

        return handler

    def answer_id(
        parse: Callable[[Inquiry, str], Question], folder: str
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handler(request: web.Request) -> web.StreamResponse:
            question = parse(inquiry_of(services, request), id_in_path(request, folder))
            return await _answer(services, request, question)

        return handler

    def answer_parameter(
        parse: Callable[[Inquiry, str], Question], name: str
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handler(request: web.Request) -> web.StreamResponse:
            inquiry, found = _without(inquiry_of(services, request), name)
            return await _answer(services, request, parse(inquiry, found))

        return handler

    app.router.add_get("/v1/events", answer(question_params.parse_events))
    app.router.add_get(EVENTS + "{event_id" + _ANY, answer_id(question_params.parse_event, EVENTS))
    app.router.add_get("/v1/stream/events", partial(stream_events, services), allow_head=False)
    app.router.add_get("/v1/traces", answer(question_params.parse_traces))
    app.router.add_get(TRACES, answer_parameter(question_params.parse_trace, "trace_id"))
    app.router.add_get(TRACES + "{trace_id" + _ANY, answer_id(question_params.parse_trace, TRACES))
    app.router.add_get("/v1/sessions", answer(question_params.parse_sessions))
    app.router.add_get(SESSIONS, answer_parameter(question_params.parse_session, "session_id"))
    app.router.add_get(SESSIONS + "{session_id" + _ANY, answer_id(question_params.parse_session, SESSIONS))
    app.router.add_get("/v1/metrics", answer(question_params.parse_metrics))
    app.router.add_get("/v1/prompts", answer(question_params.parse_prompts))
    app.router.add_get("/v1/export", partial(download_events, services))


async def _answer(services: Services, request: web.Request, question: Question) -> web.StreamResponse:
    download = await begin_answer(services, request, question)
    return await answer_json(services, request, download)


def _without(inquiry: Inquiry, name: str) -> tuple[Inquiry, str]:
    """Take the id out of the parameters, for the ids that clients and proxies resolve in a path. Raises `Refused`."""
    alias = next(alias for alias, own in ALIASES.items() if own == name)
    given = [value for key, value in inquiry.pairs if key in {name, alias}]
    if len(given) != 1 or not given[0]:
        kind = name.removesuffix("_id")
        raise Refused(
            "not_found",
            f"This path names no {kind}. The ids . and .. cannot stand in a path: browsers, curl and proxies resolve "
            f"them; ask for GET /v1/{kind}s/?{name}=ID",
        )
    others = tuple(pair for pair in inquiry.pairs if pair[0] not in {name, alias})
    return inquiry._replace(pairs=others), given[0].encode(errors="replace").decode()
