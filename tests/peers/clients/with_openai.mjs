// Chats and responses through npm's openai; prints the texts as JSON: ADDRESS MODEL QUESTION PICTURE.
import OpenAI from "openai";

const [baseURL, model, question, picture] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: question }];
const chat = { model, messages, max_tokens: 16 };
const ask = { model, input: question, max_output_tokens: 16 };
const found = {};

found.models = [];
for await (const each of client.models.list()) found.models.push(each.id);

found.whole = (await client.chat.completions.create(chat)).choices[0].message.content;

found.streamed = "";
const stream = await client.chat.completions.create({ ...chat, stream: true, stream_options: { include_usage: true } });
for await (const chunk of stream) {
  found.streamed += chunk.choices[0]?.delta?.content ?? "";
  found.usage = chunk.usage ?? found.usage;
}

const parts = [{ type: "image_url", image_url: { url: picture } }, { type: "text", text: question }];
const shown = await client.chat.completions.create({ ...chat, messages: [{ role: "user", content: parts }] });
found.shown = shown.choices[0].message.content;

found.response = (await client.responses.create(ask)).output_text;

found.deltas = "";
found.events = [];
for await (const event of await client.responses.create({ ...ask, stream: true })) {
  found.events.push(event.type);
  if (event.type === "response.output_text.delta") found.deltas += event.delta;
}

const helper = client.responses.stream({ ...ask, include: ["message.output_text.logprobs"], top_logprobs: 2 });
found.final = (await helper.finalResponse()).output_text;

try {
  await client.responses.create({ ...ask, previous_response_id: "resp_1" });
} catch (error) {
  found.error = { status: error.status, param: error.param, code: error.code };
}

console.log(JSON.stringify(found));
