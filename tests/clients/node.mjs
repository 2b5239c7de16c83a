// openai-node against the gateway: `node node.mjs NAME` runs one check, and exits 1 when it does not hold.
import assert from "node:assert/strict";
import OpenAI from "openai";

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
