// Calls models with the Vercel AI SDK and its telemetry: `node app.mjs NAME [PROMPT...]`, as ../app.py does in Python.
// The exporter goes by the variables of OpenTelemetry; it sends JSON, or protobuf where OTEL_EXPORTER_OTLP_PROTOCOL says
// http/protobuf.
import { createOpenAI } from "@ai-sdk/openai";
import { BatchSpanProcessor, NodeTracerProvider } from "@opentelemetry/sdk-trace-node";
import { embed, generateText, streamText } from "ai";

const isProtobuf = process.env.OTEL_EXPORTER_OTLP_PROTOCOL === "http/protobuf";
const { OTLPTraceExporter } = await import(`@opentelemetry/exporter-trace-otlp-${isProtobuf ? "proto" : "http"}`);

const provider = new NodeTracerProvider({ spanProcessors: [new BatchSpanProcessor(new OTLPTraceExporter())] });
provider.register();

const openai = createOpenAI({ baseURL: `${process.env.MODEL_API}/v1`, apiKey: "a-key-for-tests" });
const experimental_telemetry = {
  isEnabled: true,
  functionId: "greet",
  metadata: { userId: "ann", sessionId: "s-1" },
};
const common = { maxRetries: 0, experimental_telemetry };
const [program, ...prompts] = process.argv.slice(2);
if (!prompts.length) {
  prompts.push("Say hello: in=1200 out=300", "Say hello: in=2000 cached=1024 out=500 thought=320", "Say hello: status=429");
}

if (program === "many-openai-calls") {
  for (const [number, prompt] of prompts.entries()) {
    await generateText({ ...common, model: openai.chat("gpt-4o"), prompt });
    // While requests are being retried spans queue up, and of what is flushed at once the exporter refuses all above 30.
    if (number % 8 === 7) await provider.forceFlush();
  }
  prompts.length = 0;
}
for (const prompt of prompts) {
  const name = prompt.includes("thought=") ? "o4-mini" : "gpt-4o";
  for (const model of [openai(name), openai.chat(name)]) {
    await generateText({ ...common, model, prompt }).catch(() => {});
    const streamed = streamText({ ...common, model, prompt, onError: () => {} });
    await streamed.consumeStream({ onError: () => {} });
  }
}
if (prompts.length) await embed({ ...common, model: openai.embedding("text-embedding-3-small"), value: "in=57" });
await provider.forceFlush(); // waits until all is sent, or given up
await provider.shutdown();
