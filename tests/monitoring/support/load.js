// A server with an app and clients that use everything the dashboard shows.

import { createServer, request as httpRequest } from "node:http";
import { createSocket } from "node:dgram";
import { Campfire, roomGid, sessionCookie } from "../../browser/support/campfire.js";
import { Ringcable, freePort } from "../../browser/support/server.js";
import { CableClient } from "../../proxy/support/client.js";

const USERS = 3;
/** Clients that connect at a time. */
const CONNECTING = 20;
/** Of 60 KB each: more than the kernel and --ws_max_pending_size hold together. */
const STALLING_BROADCASTS = 120;
const UNREAD = JSON.stringify({ channel: "UnreadRoomsChannel" });
const TYPING = JSON.stringify({ channel: "TypingNotificationsChannel", room_id: 1 });

/** Between the server and the app: keeps every call for `delayMs()` milliseconds, and may be gone. */
class SlowRoad {
  delayMs = () => 0;

  static async start(target) {
    const road = new SlowRoad();
    const { hostname, port } = new URL(target);
    road.server = createServer((incoming, answer) => {
      const chunks = [];
      incoming.on("data", (chunk) => chunks.push(chunk));
      incoming.on("end", () => setTimeout(() => {
        const { method, url: path, headers } = incoming;
        const call = httpRequest({ hostname, port, method, path, headers, agent: false }, (response) => {
          answer.writeHead(response.statusCode, response.headers);
          response.pipe(answer);
        });
        call.on("error", () => answer.destroy());
        call.end(Buffer.concat(chunks));
      }, road.delayMs()));
    });
    road.server.keepAliveTimeout = 0;
    await new Promise((resolve) => road.server.listen(0, "127.0.0.1", resolve));
    road.url = target.replace(`:${port}`, `:${road.server.address().port}`);
    return road;
  }

  /** The app is gone. */
  async pause() {
    this.port = this.server.address().port;
    await this.stop();
  }

  /** It is back. */
  resume() {
    return new Promise((resolve) => this.server.listen(this.port, "127.0.0.1", resolve));
  }

  async stop() {
    this.server.closeAllConnections();
    await new Promise((resolve) => this.server.close(resolve));
  }
}

export class Scene {
  clients = [];
  #running = true;
  #loops = [];

  static async start() {
    const scene = new Scene();
    scene.campfire = await Campfire.start();
    scene.road = await SlowRoad.start(scene.campfire.rpcUrl);
    scene.port = await freePort();
    scene.campfire.useServer(scene.port);
    scene.statsd = createSocket("udp4");
    await new Promise((resolve) => scene.statsd.bind(0, "127.0.0.1", resolve));
    scene.ringcable = await Ringcable.start({
      port: scene.port,
      rpcUrl: scene.road.url,
      overrides: {
        ANYCABLE_CORES: "2",
        ANYCABLE_BROKER: "memory",
        ANYCABLE_METRICS_HTTP: "/metrics",
        ANYCABLE_STATS_REFRESH_INTERVAL: "1",
        ANYCABLE_METRICS_ROTATE_INTERVAL: "1",
        ANYCABLE_STATSD_HOST: `127.0.0.1:${scene.statsd.address().port}`,
        ANYCABLE_RPC_SLOW_CALL: "100",
        ANYCABLE_PING_INTERVAL: "1",
      },
    });
    return scene;
  }

  /** Does something again and again until the scene ends, each time after a pause. */
  #repeat(pauseMs, act) {
    const loop = async () => {
      for (let turn = 0; this.#running; turn += 1) {
        await act(turn);
        await new Promise((resolve) => setTimeout(resolve, typeof pauseMs === "function" ? pauseMs() : pauseMs));
      }
    };
    this.#loops.push(loop());
  }

  async connect(userId, target = "/cable") {
    const cookie = `session_token=${encodeURIComponent(sessionCookie(userId))}`;
    return CableClient.open(`ws://127.0.0.1:${this.port}${target}`, { Cookie: cookie });
  }

  /** Brings the number of clients to `count`; each listens to two streams. */
  async setClients(count) {
    this.clients = this.clients.filter(({ socket }) => socket.readyState === socket.OPEN);
    while (this.clients.length > count) this.clients.pop().close(1000);
    while (this.clients.length < count) {
      const some = Math.min(CONNECTING, count - this.clients.length);
      const come = Array.from({ length: some }, (_, number) => this.#listener(1 + (number % USERS)));
      this.clients.push(...await Promise.all(come));
    }
  }

  async #listener(userId) {
    const client = await this.connect(userId);
    await client.subscribe(UNREAD);
    await client.subscribe(TYPING);
    client.forget();
    return client;
  }

  /** Broadcasts, commands, mistakes and reconnects from now on; `pauseMs` between two broadcasts. */
  run(pauseMs = 50) {
    this.#repeat(pauseMs, (turn) => this.campfire.broadcast("unread_rooms", { turn, text: "x".repeat(200) }));
    this.#repeat(pauseMs, async (turn) => {
      const client = this.clients[turn % this.clients.length];
      client?.send({ command: "message", identifier: TYPING, data: JSON.stringify({ action: "start" }) });
      // A mistake now and then.
      if (turn % 10 === 0) client?.send({ command: "subscribe", identifier: UNREAD });
    });
    this.#repeat(300, async (turn) => {
      const client = await this.connect(1 + (turn % USERS)).catch(() => undefined);
      if (turn % 2 === 0) client?.close(1000);
      else client?.terminate();
    });
    this.#repeat(500, () => fetch(`http://127.0.0.1:${this.port}/health`).then((answer) => answer.text()));
  }

  /** So many clients stop reading, and are sent more than the server keeps for one. */
  async stall(count) {
    const identifier = JSON.stringify({ channel: "RoomChannel", room_id: 2 });
    for (let number = 0; number < count; number += 1) {
      const client = await this.connect(1);
      await client.subscribe(identifier);
      client.socket.pause();
      this.clients.unshift(client);
    }
    const text = "x".repeat(60_000);
    for (let number = 0; number < STALLING_BROADCASTS; number += 1) {
      await this.campfire.broadcast(`room:${roomGid(2)}`, { text });
    }
  }

  async stop() {
    this.#running = false;
    await Promise.allSettled(this.#loops);
    this.clients.forEach((client) => client.terminate());
    await this.ringcable.stop("SIGKILL");
    await this.road.stop();
    await this.campfire.stop();
    this.statsd.close();
  }
}
