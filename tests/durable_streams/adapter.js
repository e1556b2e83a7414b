// Writes for the conformance tests of durable streams, which ringcable does not serve: it stands in front of ringcable, creates streams
// in its own memory, publishes what is appended through the REST API, and passes on what is read. What ringcable answers to a reader
// is not changed, with three exceptions: a stream that was never created is 404; streams of other types than JSON are kept in JSON
// strings; and their bodies and events are changed back.

import http from "node:http";

const STREAM = "stream-next-offset";

// How messages of a content type become JSON, and back.
function codec(type) {
  if (type === "application/json") return null;
  const isText = type.startsWith("text/");
  return {
    isText,
    encode: (bytes) => JSON.stringify(bytes.toString("base64")),
    decode: (messages) => Buffer.concat(messages.map((text) => Buffer.from(text, "base64"))),
  };
}

const plain = (type) => (type ?? "application/octet-stream").split(";")[0].trim().toLowerCase();

async function bodyOf(stream) {
  const parts = [];
  for await (const part of stream) parts.push(part);
  return Buffer.concat(parts);
}

// Answers like a server of durable streams to everything but reads.
export function adapter({ target, key }) {
  const streams = new Map();
  const call = (method, path, headers, body) =>
    new Promise((resolve, reject) => {
      const request = http.request(new URL(path, target), { method, headers, agent: false }, resolve);
      request.on("error", reject);
      request.end(body);
    });

  const publish = async (stream, messages) => {
    const batch = messages.map((data) => ({ stream: stream.name, data }));
    const body = JSON.stringify(batch);
    const headers = { authorization: `Bearer ${key}`, "content-length": Buffer.byteLength(body) };
    const answer = await call("POST", "/api/publish", headers, body);
    await bodyOf(answer);
    if (answer.statusCode !== 201) throw new Error(`publish: ${answer.statusCode}`);
  };

  const tail = async (path) => {
    const answer = await call("HEAD", path, {});
    await bodyOf(answer);
    return answer.headers[STREAM];
  };

  const refuse = (response, status) => response.writeHead(status, { "x-content-type-options": "nosniff" }).end();

  // The messages of a body. `null`: it is none.
  const messagesOf = (type, body) => {
    const convert = codec(type);
    if (convert) return [convert.encode(body)];
    const value = JSON.parse(body.toString());
    return (Array.isArray(value) ? value : [value]).map((item) => JSON.stringify(item));
  };

  const create = async (request, response, path, body) => {
    const type = plain(request.headers["content-type"]);
    const known = streams.get(path);
    if (known && known.type !== type) return refuse(response, 409);
    const stream = known ?? { type, shown: request.headers["content-type"] ?? type, name: decodeURIComponent(path.slice("/ds/".length)) };
    let messages = [];
    try {
      if (body.length > 0) messages = messagesOf(type, body);
    } catch {
      return refuse(response, 400);
    }
    streams.set(path, stream);
    if (!known && messages.length > 0) await publish(stream, messages);
    response.writeHead(known ? 200 : 201, {
      "content-type": stream.shown,
      location: `http://${request.headers.host}${request.url}`,
      [STREAM]: await tail(path),
      "x-content-type-options": "nosniff",
      "cross-origin-resource-policy": "cross-origin",
    });
    response.end();
  };

  const append = async (request, response, path, body) => {
    const stream = streams.get(path);
    if (!stream) return refuse(response, 404);
    if (!request.headers["content-type"] || body.length === 0) return refuse(response, 400);
    if (plain(request.headers["content-type"]) !== stream.type) return refuse(response, 409);
    let messages;
    try {
      messages = messagesOf(stream.type, body);
    } catch {
      return refuse(response, 400);
    }
    if (messages.length === 0) return refuse(response, 400);
    await publish(stream, messages);
    response.writeHead(204, { [STREAM]: await tail(path), "x-content-type-options": "nosniff" }).end();
  };

  const read = async (request, response, path, query) => {
    const stream = streams.get(path);
    if (!stream) return refuse(response, 404);
    const headers = { ...request.headers };
    delete headers.host;
    const upstream = http.request(new URL(path + query, target), { method: request.method, headers, agent: false });
    upstream.on("error", () => response.destroy());
    response.on("close", () => upstream.destroy());
    upstream.on("response", (answer) => pass(answer, response, stream, request.method));
    upstream.end();
  };

  const pass = async (answer, response, stream, method) => {
    const headers = { ...answer.headers };
    delete headers.connection;
    const convert = codec(stream.type);
    const isEvents = headers["content-type"] === "text/event-stream";
    if (!convert || ![200, 204].includes(answer.statusCode)) {
      if (answer.statusCode === 200 && !isEvents) headers["content-type"] = stream.shown;
      response.writeHead(answer.statusCode, headers);
      response.flushHeaders();
      return answer.pipe(response);
    }
    if (isEvents) {
      if (!convert.isText) headers["stream-sse-data-encoding"] = "base64";
      response.writeHead(200, headers);
      response.flushHeaders();
      return convertEvents(answer, response, convert);
    }
    if (answer.statusCode === 200) headers["content-type"] = stream.shown;
    const body = await bodyOf(answer);
    delete headers["content-length"];
    response.writeHead(answer.statusCode, headers);
    response.end(method === "HEAD" || body.length === 0 ? undefined : convert.decode(JSON.parse(body.toString())));
  };

  return http.createServer(async (request, response) => {
    try {
      const url = new URL(request.url, "http://adapter");
      // The tests have streams below /v1/stream/, ringcable has them below /ds/.
      const path = url.pathname.replace(/^\/v1\/stream\//, "/ds/");
      const query = request.url.includes("?") ? request.url.slice(request.url.indexOf("?")) : "";
      if (request.method === "GET" || request.method === "HEAD") return await read(request, response, path, query);
      const body = await bodyOf(request);
      if (request.method === "PUT") return await create(request, response, path, body);
      if (request.method === "POST") return await append(request, response, path, body);
      if (request.method === "DELETE") {
        const isKnown = streams.delete(path);
        return response.writeHead(isKnown ? 204 : 404, { "x-content-type-options": "nosniff" }).end();
      }
      const answer = await call(request.method, path + query, request.headers);
      response.writeHead(answer.statusCode, answer.headers);
      answer.pipe(response);
    } catch (error) {
      response.destroy(error);
    }
  });
}

// Changes the data of each data event back; control events stay as they are.
async function convertEvents(answer, response, convert) {
  let text = "";
  for await (const part of answer.on("error", () => response.destroy())) {
    text += part.toString();
    let end;
    while ((end = text.indexOf("\n\n")) >= 0) {
      const event = text.slice(0, end);
      text = text.slice(end + 2);
      response.write(event.startsWith("event: data") ? dataEvent(event, convert) : `${event}\n\n`);
    }
  }
  response.end();
}

function dataEvent(event, convert) {
  const lines = event.split("\n").slice(1).map((line) => line.replace(/^data: ?/, ""));
  const bytes = convert.decode(JSON.parse(lines.join("\n")));
  const shown = convert.isText ? bytes.toString() : bytes.toString("base64");
  return `event: data\n${shown.split(/\r\n|\r|\n/).map((line) => `data:${line}\n`).join("")}\n`;
}
