"""What the commands make of a server's answers, and of what is none."""

import pytest
from aiohttp import web

from server.cli.remote import Question, Unanswered, ask
from server.errors import Refused
from tests.contract.doors import INGEST_ONLY, SECRET, Doors


async def test_an_answer_is_given_back_as_it_is(doors: Doors) -> None:
    body = await ask(f"{doors.url}/", SECRET, Question("/v1/users", {"sort": "requests", "model": "a&b=ü"}))
    assert body == (await doors.get("/v1/users")).body
    assert doors.reads.asked[0][1] == {"sort": "requests", "model": "a&b=ü"}


@pytest.mark.parametrize(
    ("key", "question", "reason", "says"),
    [
        (
            "lqt_x",
            Question("/v1/quota"),
            "unauthenticated",
            "answers 401 unauthenticated: Invalid API key; give a valid",
        ),
        (
            INGEST_ONLY,
            Question("/v1/quota"),
            "forbidden",
            "answers 403 forbidden: This API key lacks the scope 'read'; ",
        ),
        (
            SECRET,
            Question("/v1/quota", {"sort": "x"}),
            "bad_request",
            "answers 400 bad_request: unknown parameter 'sort'",
        ),
        (SECRET, Question("/v1/nothing"), "not_found", "answers 404 not_found: There is nothing at this path"),
        (SECRET, Question("/v1/quota", {}, "PUT", b"{}"), "method_not_allowed", "PUT is not allowed here"),
    ],
)
async def test_a_refusal_says_who_refuses_why_and_what_to_do(
    doors: Doors, key: str, question: Question, reason: str, says: str
) -> None:
    with pytest.raises(Refused) as caught:
        await ask(doors.url, key, question)
    assert caught.value.reason == reason
    assert caught.value.message.startswith(doors.url)
    assert says in caught.value.message


@pytest.mark.parametrize("body", [b"<html>", b"{}", b'{"error": 1}'])
async def test_what_is_no_server_of_ours_is_no_answer(body: bytes) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=502, body=body)

    app = web.Application()
    app.router.add_get("/v1/quota", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    with pytest.raises(Unanswered, match="answers 502, not as a spendstream server does"):
        await ask(url, "lqt_x", Question("/v1/quota"))
    await runner.cleanup()
    with pytest.raises(Unanswered, match=f"no answer from {url}: "):
        await ask(url, "lqt_x", Question("/v1/quota"))


@pytest.mark.parametrize("url", ["", "example", "ftp://127.0.0.1", "http://"])
async def test_what_is_no_address_is_no_answer(url: str) -> None:
    with pytest.raises(Unanswered, match="no answer from"):
        await ask(url, "lqt_x", Question("/v1/quota"))


async def test_a_proxy_gets_the_name_and_password_of_the_address() -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=f"{request.headers['Authorization']} {request.headers['x-api-key']}")

    app = web.Application()
    app.router.add_get("/below/v1/quota", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://ops:p%40ss@127.0.0.1:{runner.addresses[0][1]}/below/"
    assert await ask(url, "lqt_x", Question("/v1/quota")) == b"Basic b3BzOnBAc3M= lqt_x"
    await runner.cleanup()
