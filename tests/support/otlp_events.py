"""Events of spans without a server: the mapping alone, on requests in the JSON form or in protobuf."""

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec

from server.otlp import json_spans
from server.otlp.content import Content
from server.otlp.kinds import Which
from server.otlp.span_parents import Tree
from server.otlp.span_survey import Survey
from tests.support.otlp import to_json


def events_of(
    sent: Mapping[str, Any], *, project: str = "default", which: Which = "genai", content: Content = "keep"
) -> list[dict[str, Any]]:
    """The lines that intake gets, decoded, in the order of the spans."""
    request = json_spans.open_request(to_json(sent))
    survey = Survey(which, content, project=project)
    asyncio.run(survey.run(request, remember=False))
    tree = Tree(survey.nodes)
    parents, wrappers = tree.parents(), tree.wrappers()
    found = []
    for each in survey.kept:
        event = survey.event(each, request, parents[each.place], is_wrapper=each.place in wrappers)
        found.append(msgspec.json.decode(event.line))
    return found
