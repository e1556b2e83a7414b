// A double of Campfire: the Rails side of HTTP RPC, the pages, and the broadcasts, as contract/campfire.md describes them.
// Strict: whatever ringcable sends that a Rails app would not accept is kept in `violations`, which tests expect empty.

import { createHmac, timingSafeEqual } from "node:crypto";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { bodyOf, broadcast } from "./http.js";
import { derivedKey } from "./server.js";

const MOUNT = "/_anycable";
const COOKIE_KEY = "cookie-signing-key";
const TURBO_KEY = "turbo-signing-key";
const beside = (path) => new URL(path, import.meta.url);
const LIBRARIES = {
  "/lib/actioncable.js": beside("../node_modules/@rails/actioncable/app/assets/javascripts/actioncable.esm.js"),
  "/lib/turbo.js": beside("../node_modules/@hotwired/turbo-rails/app/assets/javascripts/turbo.js"),
  "/lib/page.js": beside("./page.js"),
};

// Keys that the gem's protobuf messages have; any other is an exception there.
const CALL_KEYS = {
  connect: { env: "object" },
  command: { command: "string", identifier: "string", connection_identifiers: "string", data: "string", env: "object" },
  disconnect: { identifiers: "string", subscriptions: "object", env: "object" },
};
const ENV_KEYS = { url: "string", headers: "object", cstate: "object", istate: "object" };

const gidParam = (gid) => Buffer.from(gid).toString("base64url");
const hmac = (key, text, hash = "sha256") => createHmac(hash, key).update(text).digest("hex");

export const roomGid = (id) => gidParam(`gid://campfire/Rooms::Open/${id}`);
export const userGid = (id) => gidParam(`gid://campfire/User/${id}`);
export const connectionIdentifiers = (userId) => JSON.stringify({ current_user: userGid(userId) });

/** The login cookie: base64, `--`, hex. */
export function sessionCookie(userId) {
  const payload = Buffer.from(JSON.stringify({ user: userId })).toString("base64");
  return `${payload}--${hmac(COOKIE_KEY, payload, "sha1")}`;
}

/** A stream name as `turbo_stream_from` signs it. */
export function signedStreamName(name) {
  const payload = Buffer.from(JSON.stringify(name)).toString("base64");
  return `${payload}--${hmac(TURBO_KEY, payload)}`;
}

function verified(key, signed, hash = "sha256") {
  const [payload, digest = ""] = String(signed).split("--");
  const expected = Buffer.from(hmac(key, payload, hash));
  const got = Buffer.from(digest);
  if (got.length !== expected.length || !timingSafeEqual(got, expected)) return undefined;
  return JSON.parse(Buffer.from(payload, "base64").toString());
}

const SUCCESS = 1;
const FAILURE = 2;

export class Campfire {
  violations = [];
  calls = [];
  /** Room id to the ids of its members. */
  members = new Map([[1, new Set([1, 2, 3])], [2, new Set([1, 2, 3])], [9, new Set([99])]]);
  /** Room id to the sids that are present. */
  present = new Map();
  port;

  static async start() {
    const app = new Campfire();
    app.http = createServer((request, response) => {
      app.#answer(request, response).catch((error) => {
        app.violations.push(`the double failed: ${error.stack}`);
        response.writeHead(500).end();
      });
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

  useServer(port) {
    this.cableUrl = `ws://127.0.0.1:${port}/cable`;
    this.port = port;
  }

  /** Calls of one kind, for example `calledWith("command", {command: "subscribe"})`. */
  callsOf(kind, fields = {}) {
    const matches = ({ body }) => Object.entries(fields).every(([key, value]) => body[key] === value);
    return this.calls.filter((call) => call.kind === kind && matches(call));
  }

  // ---- broadcasts ----

  broadcast(stream, payload) {
    return this.#post({ stream, data: JSON.stringify(payload) });
  }

  disconnectUser(userId, { reconnect }) {
    return this.#post({ command: "disconnect", payload: { identifier: connectionIdentifiers(userId), reconnect } });
  }

  /** Only 201 is good. */
  async #post(body) {
    const status = await broadcast(this.port, body);
    if (status !== 201) this.violations.push(`broadcast answered ${status}, expected 201`);
  }

  /** A new message costs two publications: the Turbo append for the room, the unread mark for everybody. */
  async say(roomId, userId, body) {
    const html = body.replace(/[&<>]/g, (char) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[char]);
    const target = `messages_room_${roomId}`;
    await this.broadcast(`${roomGid(roomId)}:messages`,
      `<turbo-stream action="append" target="${target}"><template><p data-from="${userId}">${html}</p></template></turbo-stream>`);
    await this.broadcast("unread_rooms", { roomId, roomSize: 3, roomUpdatedAt: new Date().toISOString() });
  }

  // ---- HTTP ----

  async #answer(request, response) {
    const { pathname, searchParams } = new URL(request.url, this.url);
    if (pathname.startsWith(MOUNT)) return this.#answerRpc(request, response, pathname.slice(MOUNT.length + 1));
    if (pathname === "/page") return this.#answerPage(response, searchParams);
    const say = /^\/rooms\/(\d+)\/messages$/.exec(pathname);
    if (say && request.method === "POST") {
      await this.say(Number(say[1]), this.#userOf(request.headers.cookie), await bodyOf(request));
      return response.writeHead(204).end();
    }
    if (LIBRARIES[pathname]) {
      response.writeHead(200, { "Content-Type": "text/javascript" });
      return response.end(await readFile(LIBRARIES[pathname]));
    }
    return response.writeHead(404).end();
  }

  #answerPage(response, params) {
    const library = params.get("library");
    const sources = params.getAll("stream").map((name) =>
      `<turbo-cable-stream-source channel="Turbo::StreamsChannel" signed-stream-name="${signedStreamName(name)}"></turbo-cable-stream-source>`);
    response.writeHead(200, { "Content-Type": "text/html; charset=utf-8" });
    response.end(`<!doctype html><html><head><meta charset="utf-8"><title>Campfire double</title>
      <link rel="icon" href="data:,"><meta name="action-cable-url" content="${this.cableUrl}">
      <script type="module" src="/lib/page.js" data-library="${library}"></script></head>
      <body>${sources.join("")}<div id="messages_room_1"></div><div id="messages_room_2"></div></body></html>`);
  }

  async #answerRpc(request, response, kind) {
    const text = await bodyOf(request);
    // ringcable's check at its start: a Connect without a body, to which the Ruby side says this.
    if (kind === "connect" && text === "" && request.headers.authorization === `Bearer ${derivedKey("rpc-cable")}`) {
      return response.writeHead(422).end("Empty request body");
    }
    const refusal = this.#refusal(request, kind, text);
    if (refusal) {
      this.violations.push(`${request.method} ${request.url}: ${refusal.why}`);
      return response.writeHead(refusal.status).end();
    }
    const body = JSON.parse(text);
    this.calls.push({ kind, body, sid: request.headers["x-anycable-meta-sid"] });
    const answer = await this.#dispatch(kind, body, request.headers["x-anycable-meta-sid"]);
    response.writeHead(200, { "Content-Type": "application/json" });
    return response.end(JSON.stringify(answer));
  }

  #refusal(request, kind, text) {
    const { headers, method } = request;
    const refuse = (status, why) => ({ status, why });
    if (method !== "POST") return refuse(404, "expected POST");
    if (headers.authorization !== `Bearer ${derivedKey("rpc-cable")}`) return refuse(401, `authorization is ${headers.authorization}`);
    if (!CALL_KEYS[kind]) return refuse(404, `unknown call ${kind}`);
    if (headers["content-type"] !== "application/json") return refuse(500, `content type is ${headers["content-type"]}`);
    if (headers["x-anycable-meta-protov"] !== "v1") return refuse(500, `protocol is ${headers["x-anycable-meta-protov"]}`);
    if (!headers["x-anycable-meta-sid"]) return refuse(500, "no sid");
    if (headers["transfer-encoding"] || headers["content-length"] === undefined) return refuse(500, "the body must have a length");
    let body;
    try {
      body = JSON.parse(text);
    } catch (error) {
      return refuse(500, `${error.message} in ${text}`);
    }
    const wrong = wrongField(body, CALL_KEYS[kind]) ?? wrongField(body.env, ENV_KEYS);
    return wrong && refuse(500, `field ${wrong} in ${text}`);
  }

  #userOf(cookies) {
    const cookie = /(?:^|;\s*)session_token=([^;]*)/.exec(cookies ?? "");
    return cookie ? verified(COOKIE_KEY, decodeURIComponent(cookie[1]), "sha1")?.user : undefined;
  }

  // ---- channels ----

  async #dispatch(kind, body, sid) {
    if (kind === "connect") return this.#connect(body);
    if (kind === "disconnect") {
      for (const identifier of body.subscriptions ?? []) this.#absent(JSON.parse(identifier), sid);
      return { status: SUCCESS };
    }
    const userId = this.#identified(body.connection_identifiers);
    const params = JSON.parse(body.identifier);
    if (body.command === "subscribe") return this.#subscribe(body.identifier, params, userId, sid);
    if (body.command === "unsubscribe") {
      this.#absent(params, sid);
      return { status: SUCCESS, stop_streams: true, env: {} };
    }
    return this.#perform(params, JSON.parse(body.data), userId, sid);
  }

  #connect({ env }) {
    const userId = this.#userOf(env.headers?.cookie);
    if (userId === undefined) {
      return { status: FAILURE, transmissions: ['{"type":"disconnect","reason":"unauthorized","reconnect":false}'] };
    }
    return { status: SUCCESS, identifiers: connectionIdentifiers(userId), transmissions: ['{"type":"welcome"}'], env: {} };
  }

  #identified(identifiers) {
    const { current_user } = JSON.parse(identifiers);
    return Number(Buffer.from(current_user, "base64url").toString().split("/").at(-1));
  }

  async #subscribe(identifier, params, userId, sid) {
    const streams = this.#streams(params, userId);
    if (!streams) {
      const transmissions = [JSON.stringify({ identifier, type: "reject_subscription" })];
      return { status: FAILURE, stop_streams: true, transmissions, env: {} };
    }
    if (params.channel === "PresenceChannel") await this.#markPresent(params, userId, sid);
    const transmissions = [JSON.stringify({ identifier, type: "confirm_subscription" })];
    return { status: SUCCESS, ...(streams.length > 0 && { streams }), transmissions, env: {} };
  }

  /** The streams of a subscription, or undefined when it must be rejected. */
  #streams({ channel, room_id, signed_stream_name }, userId) {
    const ofRoom = (prefix) => this.members.get(room_id)?.has(userId) ? [`${prefix}:${roomGid(room_id)}`] : undefined;
    switch (channel) {
      case "RoomChannel": return ofRoom("room");
      case "PresenceChannel": return ofRoom("presence");
      case "TypingNotificationsChannel": return ofRoom("typing_notifications");
      case "HeartbeatChannel": return [];
      case "UnreadRoomsChannel": return ["unread_rooms"];
      case "UserUnreadRoomsChannel": return [`user_${userId}_unreads`];
      case "UnreadNotificationsChannel": return [`user_${userId}_notifications`];
      case "RoomListChannel": return ["room_list"];
      case "UserInvolvementsChannel": return [`user_${userId}_involvements`];
      case "ReadRoomsChannel": return [`user_${userId}_reads`];
      case "InboxMentionsChannel": return [`inbox_mentions:${userGid(userId)}`];
      case "InboxThreadsChannel": return [`inbox_threads:${userGid(userId)}`];
      case "Turbo::StreamsChannel": {
        const name = verified(TURBO_KEY, signed_stream_name);
        return name === undefined ? undefined : [name];
      }
      default: throw new Error(`no such channel: ${channel}`);
    }
  }

  async #perform({ channel, room_id }, { action }, userId, sid) {
    if (channel === "TypingNotificationsChannel") {
      await this.broadcast(`typing_notifications:${roomGid(room_id)}`, { action, user: { id: userId, name: `User ${userId}` } });
    } else if (channel === "PresenceChannel" && action === "absent") {
      this.#absent({ channel, room_id }, sid);
    } else if (channel === "PresenceChannel") {
      await this.#markPresent({ room_id }, userId, sid);
    }
    return { status: SUCCESS, env: {} };
  }

  /** Broadcasts while the RPC call is still running, as Campfire does. */
  async #markPresent({ room_id }, userId, sid) {
    if (!this.present.has(room_id)) this.present.set(room_id, new Set());
    this.present.get(room_id).add(sid);
    await this.broadcast(`user_${userId}_reads`, { room_id });
  }

  #absent({ channel, room_id }, sid) {
    if (channel === "PresenceChannel") this.present.get(room_id)?.delete(sid);
  }
}

function wrongField(object, keys) {
  return Object.entries(object ?? {}).find(([key, value]) => value === null || typeof value !== keys[key])?.[0];
}
