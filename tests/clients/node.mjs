// openai-node against the gateway: `node node.mjs NAME` runs one check, and exits 1 when it does not hold.
import assert from "node:assert/strict";
import OpenAI, { toFile } from "openai";
import { ResponsesWS } from "openai/resources/responses/ws";

const { GATEWAY_URL, KEY, POOR_KEY, SUSPENDED_KEY } = process.env;
const model = "gpt-6.1-sol";
const client = (apiKey = KEY, more = {}) => new OpenAI({ baseURL: `${GATEWAY_URL}/v1`, apiKey, ...more });
const says = (content, more = {}) => ({ model, messages: [{ role: "user", content }], ...more });
const parameters = {
  type: "object",
  properties: { city: { type: "string" } },
  required: ["city"],
  additionalProperties: false,
};

async function refusal(call, key, kind, code) {
  let requests = 0;
  const counting = (...args) => (requests++, fetch(...args));
  await assert.rejects(
    () => call(client(key, { fetch: counting })),
    (error) => error instanceof kind && error.code === code,
  );
  assert.equal(requests, 1, `${code} is final`);
}

const checks = {
  async chat() {
    const answer = await client().chat.completions.create(says("hello"));
    assert.match(answer.choices[0].message.content, /You said/);
    assert.ok(answer.usage.total_tokens > 0);
  },
  async "chat stream"() {
    const stream = await client().chat.completions.create(
      says("hello", { stream: true, stream_options: { include_usage: true } }),
    );
    let text = "";
    let usage;
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta?.content ?? "";
      usage = chunk.usage ?? usage;
    }
    assert.match(text, /You said/);
    assert.ok(usage.completion_tokens > 0);
  },
  async tools() {
    const tools = [{ type: "function", function: { name: "weather", parameters } }];
    const asked = says("sim:tools what is the weather?", { tools });
    const { message } = (await client().chat.completions.create(asked)).choices[0];
    assert.equal(message.tool_calls[0].function.name, "weather");
    asked.messages.push(message, { role: "tool", tool_call_id: message.tool_calls[0].id, content: "sunny-42" });
    const answer = await client().chat.completions.create(asked);
    assert.match(answer.choices[0].message.content, /sunny-42/);
  },
  async "structured output"() {
    const format = { type: "json_schema", json_schema: { name: "answer", strict: true, schema: parameters } };
    const answer = await client().chat.completions.parse(says("where?", { response_format: format }));
    assert.equal(typeof JSON.parse(answer.choices[0].message.content).city, "string");
  },
  async embeddings() {
    const answer = await client().embeddings.create({ model: "text-embedding-3-small", input: ["a", "b c"] });
    assert.equal(answer.data.length, 2);
    assert.ok(answer.data[0].embedding.length > 1);
  },
  async responses() {
    const answer = await client().responses.create({ model, input: "hello" });
    assert.match(answer.output_text, /You said/);
  },
  async "responses stream"() {
    const stream = client().responses.stream({ model, input: "hello" });
    let text = "";
    for await (const event of stream) if (event.type === "response.output_text.delta") text += event.delta;
    const final = await stream.finalResponse();
    assert.equal(text, final.output_text);
    assert.ok(final.usage.output_tokens > 0);
  },
  async "chat stream helper"() {
    const stream = client().chat.completions.stream(says("hello"));
    let text = "";
    for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? "";
    assert.equal(await stream.finalContent(), text);
    assert.match(text, /You said/);
  },
  async "tool runner"() {
    let asked = 0;
    const weather = async ({ city }) => (asked++, `sunny-42 in ${city}`);
    const run = { type: "function", function: { name: "weather", parameters, parse: JSON.parse, function: weather } };
    const runner = client().chat.completions.runTools(says("sim:tools what is the weather?", { tools: [run] }));
    assert.match(await runner.finalContent(), /sunny-42/);
    assert.equal(asked, 1);
  },
  async "structured response"() {
    const text = { format: { type: "json_schema", name: "answer", strict: true, schema: parameters } };
    const answer = await client().responses.parse({ model, input: "where?", text });
    assert.equal(typeof answer.output_parsed.city, "string");
  },
  async websocket() {
    const socket = new ResponsesWS(client());
    async function ask(more) {
      let text = "";
      socket.send({ type: "response.create", model, store: false, ...more });
      for await (const { type, message, error } of socket.stream()) {
        if (type === "error") return { error };
        if (message?.type === "response.output_text.delta") text += message.delta;
        if (message?.type === "response.completed") return { id: message.response.id, usage: message.response.usage, text };
      }
    }
    const first = await ask({ input: "one" });
    assert.match(first.text, /one/);
    assert.ok(first.usage.output_tokens > 0);
    const second = await ask({ input: "two", previous_response_id: first.id });
    assert.match(second.text, /two/);
    assert.ok(second.usage.input_tokens > first.usage.input_tokens, "the first turn is in front of the second");
    const refused = await ask({ model: "gpt-0-nonsense", input: "three" });
    assert.match(JSON.stringify(refused.error.error ?? refused.error), /model_not_found/);
    socket.close();
  },
  async uploads() {
    const api = client();
    const content = Buffer.alloc(1 << 20, "0123456789");
    const made = await api.files.create({ file: await toFile(content, "a.bin"), purpose: "user_data" });
    assert.equal(made.bytes, content.length);
    assert.deepEqual(Buffer.from(await (await api.files.content(made.id)).arrayBuffer()), content);
    assert.ok((await api.files.delete(made.id)).deleted);
    const file = await toFile(Buffer.alloc(9_000), "a.mp3");
    const heard = await api.audio.transcriptions.create({ model: "whisper-1", file });
    assert.equal(heard.text, "Hello from afar.");
    const image = await toFile(Buffer.from("png"), "a.png", { type: "image/png" });
    const edited = await api.images.edit({ model: "gpt-image-2", prompt: "A cat", size: "1024x1024", quality: "low", image });
    assert.ok(edited.data[0].b64_json);
  },
  async "error classes"() {
    const chat = (more, text = "hello") => (api) => api.chat.completions.create(says(text, more));
    await refusal(chat({ model: 5 }), KEY, OpenAI.BadRequestError, "invalid_type");
    await refusal(chat({}), SUSPENDED_KEY, OpenAI.PermissionDeniedError, "user_suspended");
    const broken = client(KEY, { maxRetries: 0 }).chat.completions.create(says("sim:500"));
    await assert.rejects(broken, (error) => error instanceof OpenAI.InternalServerError && error.code === "upstream_error");
  },
  async errors() {
    const chat = (api) => api.chat.completions.create(says("hello"));
    const other = (api) => api.responses.create({ model: "gpt-0-nonsense", input: "hello" });
    await refusal(chat, POOR_KEY, OpenAI.RateLimitError, "insufficient_quota");
    await refusal(chat, "sk-gw-nonsense", OpenAI.AuthenticationError, "invalid_api_key");
    await refusal(other, KEY, OpenAI.NotFoundError, "model_not_found");
  },
};

await checks[process.argv[2]]();
