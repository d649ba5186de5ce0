"""Calls models with one instrumentation: `python app.py NAME [PROMPT...]`, in the environment of the clients.

What an application would do, and no more: an exporter that goes by the variables of OpenTelemetry, one instrumentation,
and the provider's own library, whose address comes from `MODEL_API`. Without prompts each library makes the calls of
`PROMPTS`; the words of a prompt say what a call costs and how it goes (tests/support/model_api.py).
"""

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable

API = os.environ["MODEL_API"]
for variable in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY"):
    os.environ[variable] = "a-key-for-tests"
os.environ["OPENAI_BASE_URL"] = f"{API}/v1"
os.environ["ANTHROPIC_BASE_URL"] = API

PROMPTS = (
    "Say hello: in=1200 out=300",
    "Say hello: in=2000 cached=1024 out=500 thought=320",
    "Say hello: status=429",
    "Say hello: wait=2",
)
HOURLY = "Say hello: in=2000 cached=400 write=700 hourly=500 out=100"
LIBRARIES: dict[str, Callable[[list[str]], None]] = {}


def library(run: Callable[[list[str]], None]) -> Callable[[list[str]], None]:
    LIBRARIES[run.__name__.replace("_", "-")] = run
    return run


def tracing() -> None:
    """Send spans to where OTEL_EXPORTER_OTLP_ENDPOINT says, as OTEL_EXPORTER_OTLP_PROTOCOL says."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    if os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    else:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


# --- OpenAI ---------------------------------------------------------------------------------------------------------


def openai_calls(prompts: list[str], *, embeddings: bool = True, responses: bool = True) -> None:
    """Each prompt whole and streamed by chat completions, and once by responses; one embedding."""
    import openai

    client = openai.OpenAI(max_retries=0, timeout=1)
    for prompt in prompts:
        model = "o4-mini" if "thought=" in prompt else "gpt-4o"
        said = [{"role": "user", "content": prompt}]
        with contextlib.suppress(openai.APIError):
            client.chat.completions.create(model=model, messages=said)
        if "wait=" in prompt:
            continue
        with contextlib.suppress(openai.APIError):
            chunks = client.chat.completions.create(
                model=model, messages=said, stream=True, stream_options={"include_usage": True}
            )
            for _chunk in chunks:
                pass
        if responses:
            with contextlib.suppress(openai.APIError):
                client.responses.create(model=model, input=prompt)
    if embeddings:
        client.embeddings.create(model="text-embedding-3-small", input="in=57")


@library
def otel_openai_v2(prompts: list[str]) -> None:
    """It makes no span of a call to responses."""
    from opentelemetry.instrumentation.openai_v2 import OpenAIInstrumentor

    tracing()
    OpenAIInstrumentor().instrument()
    openai_calls(prompts, responses=False)


@library
def otel_genai_openai(prompts: list[str]) -> None:
    from opentelemetry.instrumentation.genai.openai import OpenAIInstrumentor

    tracing()
    OpenAIInstrumentor().instrument()
    openai_calls(prompts)


@library
def openinference_openai(prompts: list[str]) -> None:
    from openinference.instrumentation.openai import OpenAIInstrumentor

    tracing()
    OpenAIInstrumentor().instrument()
    openai_calls(prompts)


@library
def openllmetry_openai(prompts: list[str]) -> None:
    from opentelemetry.instrumentation.openai import OpenAIInstrumentor

    tracing()
    OpenAIInstrumentor().instrument()
    openai_calls(prompts)


@library
def openai_twice(prompts: list[str]) -> None:
    """Two instrumentations of one library: each call has two spans, one inside the other."""
    from openinference.instrumentation.openai import OpenAIInstrumentor as OpenInference
    from opentelemetry.instrumentation.genai.openai import OpenAIInstrumentor

    tracing()
    OpenAIInstrumentor().instrument()
    OpenInference().instrument()
    openai_calls(prompts)


@library
def traceloop_sdk(prompts: list[str]) -> None:
    """Their SDK makes the exporter itself; workflow and task are spans around the calls."""
    from traceloop.sdk import Instruments, Traceloop
    from traceloop.sdk.decorators import task, workflow

    Traceloop.init(
        app_name="assistant",
        api_endpoint=os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"],
        headers=dict(
            each.split("=", 1) for each in os.environ.get("OTEL_EXPORTER_OTLP_HEADERS", "").split(",") if each
        ),
        telemetry_enabled=False,
        # Else it imports all that it could instrument, for seconds; the program of the guide has it do so.
        instruments={Instruments.OPENAI},
    )

    @task(name="answer")
    def answer(prompt: str) -> None:
        openai_calls([prompt], embeddings=False, responses=False)

    @workflow(name="conversation")
    def conversation() -> None:
        Traceloop.set_association_properties({"user_id": "ann", "session_id": "s-1"})
        for prompt in prompts:
            answer(prompt)

    conversation()


@library
def many_openai_calls(prompts: list[str]) -> None:
    """Each prompt once by chat completions, as quickly as it goes."""
    import openai
    from openinference.instrumentation.openai import OpenAIInstrumentor

    tracing()
    OpenAIInstrumentor().instrument()
    client = openai.OpenAI(max_retries=0)
    for prompt in prompts:
        client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": prompt}])


# --- other providers ------------------------------------------------------------------------------------------------


def anthropic_calls(prompts: list[str]) -> None:
    """Each prompt whole and streamed, with tokens written to the cache in the first of them."""
    import anthropic

    client = anthropic.Anthropic(max_retries=0, timeout=1)
    for prompt in prompts:
        said = [{"role": "user", "content": prompt.replace("in=1200", "in=1200 write=600 cached=400")}]
        request = {"model": "claude-sonnet-4-5", "max_tokens": 1000, "messages": said}
        with contextlib.suppress(anthropic.APIError):
            client.messages.create(**request)
        if "wait=" in prompt:
            continue
        with contextlib.suppress(anthropic.APIError), client.messages.stream(**request) as stream:
            for _event in stream:
                pass


@library
def anthropic_sdk(prompts: list[str]) -> None:
    """Its own spans, without any instrumentation to install. They say what is written to a cache for an hour."""
    tracing()
    anthropic_calls(prompts if prompts != [*PROMPTS] else [*prompts, HOURLY])


@library
def openinference_anthropic(prompts: list[str]) -> None:
    from openinference.instrumentation.anthropic import AnthropicInstrumentor

    tracing()
    AnthropicInstrumentor().instrument()
    anthropic_calls(prompts)


@library
def openllmetry_anthropic(prompts: list[str]) -> None:
    from opentelemetry.instrumentation.anthropic import AnthropicInstrumentor

    tracing()
    AnthropicInstrumentor().instrument()
    anthropic_calls(prompts)


@library
def openinference_google_genai(prompts: list[str]) -> None:
    from google import genai
    from google.genai import errors, types
    from openinference.instrumentation.google_genai import GoogleGenAIInstrumentor

    tracing()
    GoogleGenAIInstrumentor().instrument()
    client = genai.Client(http_options=types.HttpOptions(base_url=API))
    for prompt in prompts:
        if "wait=" in prompt:
            continue
        with contextlib.suppress(errors.APIError):
            client.models.generate_content(model="gemini-2.5-flash", contents=prompt)
        with contextlib.suppress(errors.APIError):
            for _chunk in client.models.generate_content_stream(model="gemini-2.5-flash", contents=prompt):
                pass


# --- frameworks -----------------------------------------------------------------------------------------------------


@library
def openinference_langchain(prompts: list[str]) -> None:
    """A chain of a template and a model, and an agent with a tool."""
    import openai
    from langchain.agents import create_agent
    from langchain_core.prompts import ChatPromptTemplate
    from langchain_openai import ChatOpenAI
    from openinference.instrumentation.langchain import LangChainInstrumentor

    tracing()
    LangChainInstrumentor().instrument()
    if os.environ.get("BOTH_INSTRUMENTED"):
        from openinference.instrumentation.openai import OpenAIInstrumentor

        OpenAIInstrumentor().instrument()
    model = ChatOpenAI(model="gpt-4o", max_retries=0, timeout=1)
    chain = ChatPromptTemplate.from_template("{said}") | model
    for prompt in prompts:
        with contextlib.suppress(openai.APIError):
            chain.invoke({"said": prompt})
    agent = create_agent(model, [weather])
    agent.invoke({"messages": [{"role": "user", "content": "The weather in Paris? in=700 out=40"}]})


def weather(city: str) -> str:
    """Tell the weather of a city."""
    return f"sunny in {city}"


@library
def openinference_llama_index(prompts: list[str]) -> None:
    import openai
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.openai import OpenAI
    from openinference.instrumentation.llama_index import LlamaIndexInstrumentor

    tracing()
    LlamaIndexInstrumentor().instrument()
    model = OpenAI(model="gpt-4o", api_base=f"{API}/v1", max_retries=0, timeout=1)
    for prompt in prompts:
        with contextlib.suppress(openai.APIError):
            model.complete(prompt)
        if "wait=" not in prompt:
            with contextlib.suppress(openai.APIError):  # without the option a streamed answer has no usage
                for _chunk in model.stream_chat([ChatMessage(prompt)], stream_options={"include_usage": True}):
                    pass


@library
def openinference_openai_agents(prompts: list[str]) -> None:
    """Two agents' runs: one plain, one with a tool, which makes two calls."""
    import openai
    from agents import Agent, Runner, function_tool, set_default_openai_client
    from openinference.instrumentation.openai_agents import OpenAIAgentsInstrumentor

    tracing()
    OpenAIAgentsInstrumentor().instrument()
    set_default_openai_client(openai.AsyncOpenAI(max_retries=0))
    plain = Agent(name="greeter", model="gpt-4o", instructions="Be brief.")
    able = Agent(name="forecaster", model="gpt-4o", instructions="Be brief.", tools=[function_tool(weather)])
    for prompt in prompts:
        if "wait=" not in prompt:
            with contextlib.suppress(Exception):  # of whatever layer the refusal comes from
                Runner.run_sync(plain, prompt)
    Runner.run_sync(able, "The weather in Paris? in=700 out=40")


@library
def pydantic_ai(prompts: list[str]) -> None:
    """Its own spans, without any instrumentation to install."""
    import openai
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    tracing()
    Agent.instrument_all()
    if os.environ.get("BOTH_INSTRUMENTED"):
        from opentelemetry.instrumentation.genai.openai import OpenAIInstrumentor

        OpenAIInstrumentor().instrument()
    provider = OpenAIProvider(openai_client=openai.AsyncOpenAI(max_retries=0))
    agent = Agent(OpenAIChatModel("gpt-4o", provider=provider), tools=[weather])

    async def ask() -> None:
        for prompt in prompts:
            if "wait=" not in prompt:
                with contextlib.suppress(Exception):  # of whatever layer the refusal comes from
                    await agent.run(prompt)

    asyncio.run(ask())


def main(arguments: list[str]) -> None:
    name, *prompts = arguments
    LIBRARIES[name](prompts or list(PROMPTS))
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

    provider = trace.get_tracer_provider()
    assert isinstance(provider, TracerProvider)
    provider.force_flush()  # waits until all is sent, or given up; shutdown alone gives up what waits to be sent again
    provider.shutdown()


if __name__ == "__main__":
    main(sys.argv[1:])
