// The Rails side of rooms: pages with @anycable/core, @anycable/web and @anycable/turbo-stream, calls, and broadcasts.
// Its welcome has the sid, as anycable-rails writes it.

import { createHmac } from "node:crypto";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { fileURLToPath } from "node:url";
import { bodyOf, broadcast } from "./http.js";
import { SECRET, derivedKey } from "./server.js";

const MOUNT = "/_anycable";
const MODULES = fileURLToPath(new URL("../node_modules/", import.meta.url));
const IMPORTS = {
  "@anycable/core": "/lib/@anycable/core/index.js",
  "@anycable/turbo-stream": "/lib/@anycable/turbo-stream/index.js",
  "@anycable/web": "/lib/@anycable/web/index.js",
  "@hotwired/turbo": "/lib/@hotwired/turbo/dist/turbo.es2017-esm.js",
  nanoevents: "/lib/nanoevents/index.js",
};
const SCRIPTS = ["/rooms_page.js", "/events_page.js"];
const SUCCESS = 1;

/** A stream name as Rails signs it. */
export function signedName(stream) {
  const payload = Buffer.from(JSON.stringify(stream)).toString("base64");
  return `${payload}--${createHmac("sha256", SECRET).update(payload).digest("hex")}`;
}

export class Rooms {
  /** `{kind, body, sid}` of every call. */
  calls = [];
  /** The last number of each stream. */
  numbers = new Map();

  static async start() {
    const app = new Rooms();
    app.http = createServer((request, response) => {
      app.#answer(request, response).catch((error) => response.writeHead(500).end(error.stack));
    });
    // ringcable keeps its connections; closing them is the server's affair here.
    app.http.keepAliveTimeout = 0;
    await new Promise((resolve) => app.http.listen(0, "127.0.0.1", resolve));
    app.url = `http://127.0.0.1:${app.http.address().port}`;
    app.rpcUrl = app.url + MOUNT;
    return app;
  }

  async stop() {
    this.http.closeAllConnections();
    await new Promise((resolve) => this.http.close(resolve));
  }

  /** Calls so far: "connect", "disconnect", or the command and its identifier. */
  get told() {
    return this.calls.map(({ kind, body }) => (kind === "command" ? `${body.command} ${body.identifier}` : kind));
  }

  publish(stream, data, meta) {
    return this.post({ stream, data: JSON.stringify(data), ...(meta && { meta }) });
  }

  async post(body) {
    const status = await broadcast(this.port, body);
    if (status !== 201) throw new Error(`the broadcast was answered with ${status}`);
  }

  /** Publishes the next number of the stream. */
  async publishNumber(stream) {
    const n = (this.numbers.get(stream) ?? 0) + 1;
    this.numbers.set(stream, n);
    await this.publish(stream, { n });
    return n;
  }

  /** Publishes numbers to the streams, one after the other, until it is stopped. */
  count(...streams) {
    let running = true;
    const turns = (async () => {
      while (running) {
        for (const stream of streams) await this.publishNumber(stream);
        await new Promise((resolve) => setTimeout(resolve, 10));
      }
    })();
    return async () => {
      running = false;
      await turns;
    };
  }

  async #answer(request, response) {
    const { pathname, searchParams } = new URL(request.url, this.url);
    if (pathname.startsWith(MOUNT)) return this.#answerCall(request, response, pathname.slice(MOUNT.length + 1));
    if (pathname === "/page") return this.#answerPage(response, searchParams);
    if (pathname === "/events-page") return answerHtml(response, `<script type="module" src="/events_page.js"></script>`, "");
    const file = SCRIPTS.includes(pathname) ? fileURLToPath(new URL(`.${pathname}`, import.meta.url)) : MODULES + pathname.slice("/lib/".length);
    response.writeHead(200, { "Content-Type": "text/javascript" });
    return response.end(await readFile(file));
  }

  #answerPage(response, params) {
    const sources = params.getAll("turbo").map((stream) =>
      `<turbo-cable-stream-source channel="Turbo::StreamsChannel" signed-stream-name="${signedName(stream)}"></turbo-cable-stream-source>`);
    const metas = params.getAll("since").map((since) => `<meta name="cable-history-timestamp" content="${since}">`);
    const head = `${metas.join("")}<script type="importmap">${JSON.stringify({ imports: IMPORTS })}</script>
      <script type="module" src="/rooms_page.js" data-cable="${this.cableUrl}"></script>`;
    answerHtml(response, head, `${sources.join("")}<ol id="messages"></ol>`);
  }

  async #answerCall(request, response, kind) {
    const text = await bodyOf(request);
    if (request.headers.authorization !== `Bearer ${derivedKey("rpc-cable")}`) return response.writeHead(401).end();
    // ringcable's check at its start: a Connect without a body, to which the Ruby side says this.
    if (text === "") return response.writeHead(422).end("Empty request body");
    const body = JSON.parse(text);
    const sid = request.headers["x-anycable-meta-sid"];
    this.calls.push({ kind, body, sid });
    response.writeHead(200, { "Content-Type": "application/json" });
    return response.end(JSON.stringify(answerTo(kind, body, sid)));
  }
}

function answerHtml(response, head, body) {
  response.writeHead(200, { "Content-Type": "text/html; charset=utf-8" });
  response.end(`<!doctype html><html><head><meta charset="utf-8"><title>Rooms</title><link rel="icon" href="data:,">${head}</head>
    <body>${body}</body></html>`);
}

function answerTo(kind, { command, identifier, data }, sid) {
  if (kind === "connect") {
    return { status: SUCCESS, identifiers: JSON.stringify({ visitor: sid }), transmissions: [JSON.stringify({ type: "welcome", sid })], env: {} };
  }
  if (kind === "disconnect") return { status: SUCCESS };
  const say = (message) => JSON.stringify({ identifier, ...message });
  if (command === "subscribe") {
    const stream = `room/${JSON.parse(identifier).id}`;
    return { status: SUCCESS, streams: [stream], transmissions: [say({ type: "confirm_subscription" })], env: { istate: { $p: stream, $w: stream } } };
  }
  if (command === "unsubscribe") return { status: SUCCESS, stop_streams: true, env: {} };
  return { status: SUCCESS, transmissions: [say({ message: { echo: JSON.parse(data) } })], env: {} };
}
