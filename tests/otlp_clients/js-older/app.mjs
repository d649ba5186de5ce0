// Calls models with version 4 or 5 of the Vercel AI SDK: `node app.mjs 4|5 PROVIDER [PROMPT...]`, only to record spans.
import { BatchSpanProcessor, NodeTracerProvider } from "@opentelemetry/sdk-trace-node";
import { OTLPTraceExporter } from "@opentelemetry/exporter-trace-otlp-http";

const provider = new NodeTracerProvider({ spanProcessors: [new BatchSpanProcessor(new OTLPTraceExporter())] });
provider.register();

const [version, name, ...prompts] = process.argv.slice(2);
const { generateText, streamText } = await import(`ai-${version}`);
const library = await import(`${name}-${version}`);
const path = name === "google" ? "v1beta" : "v1";
const settings = { baseURL: `${process.env.MODEL_API}/${path}`, apiKey: "a-key-for-tests", compatibility: "strict" };
const models = {
  anthropic: () => library.createAnthropic(settings)("claude-sonnet-4-5"),
  google: () => library.createGoogleGenerativeAI(settings)("gemini-2.5-flash"),
  openai: () => library.createOpenAI(settings).chat("gpt-4o"),
};
if (!prompts.length) {
  prompts.push("Say hello: in=2000 out=300", "Say hello: in=2000 cached=700 out=500");
  if (name === "anthropic") prompts.push("Say hello: in=2000 cached=1500 write=300 out=500", "Say hello: in=2000 write=200 out=7");
  if (name === "anthropic" && version === "5") prompts.push("Say hello: in=2000 cached=400 write=700 hourly=500 out=100");
  if (name === "google") prompts.push("Say hello: in=2000 cached=700 out=500 thought=100");
}
for (const prompt of prompts) {
  const common = { model: models[name](), prompt, maxRetries: 0, experimental_telemetry: { isEnabled: true } };
  await generateText(common);
  const streamed = streamText({ ...common, onError: ({ error }) => console.error(error) });
  await streamed.consumeStream();
}
await provider.forceFlush();
await provider.shutdown();
