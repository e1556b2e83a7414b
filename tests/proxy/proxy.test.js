// ringcable behind the real Caddy and nginx: connect, chat, and which address the app sees.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { Campfire, sessionCookie } from "../browser/support/campfire.js";
import { Ringcable, freePort } from "../browser/support/server.js";
import { until } from "../browser/support/until.js";
import { CableClient, plainRequest } from "./support/client.js";
import { PROXIES } from "./support/proxies.js";

const FORWARDED = "198.51.100.7";

for (const Proxy of PROXIES) {
  describe(Proxy.name, () => {
    let campfire;
    let ringcable;
    let proxy;
    const clients = [];
    const violations = [];

    async function start(overrides) {
      await stop();
      campfire = await Campfire.start();
      const port = await freePort();
      campfire.useServer(port);
      ringcable = await Ringcable.start({ port, rpcUrl: campfire.rpcUrl, overrides });
      proxy = await Proxy.start({ cablePort: port, appUrl: campfire.url });
    }

    async function stop() {
      clients.splice(0).forEach((client) => client.terminate());
      await proxy?.stop();
      await ringcable?.stop("SIGKILL");
      await campfire?.stop();
      violations.push(...(campfire?.violations ?? []));
      proxy = ringcable = campfire = undefined;
    }

    async function connect(userId, headers = {}) {
      const cookie = `session_token=${encodeURIComponent(sessionCookie(userId))}`;
      const client = await CableClient.open(`ws://127.0.0.1:${proxy.port}/cable`, { Cookie: cookie, ...headers });
      clients.push(client);
      return client;
    }

    const lastEnv = () => campfire.callsOf("connect").at(-1).body.env;

    before(() => start());
    after(stop);

    test("the upgrade passes through with its sub-protocol and the server's version", async () => {
      const client = await connect(1);
      assert.equal(client.protocol, "actioncable-v1-json");
      assert.equal(client.upgradeHeaders["x-anycable-version"], "1.6.16");
      assert.deepEqual(await client.next(({ type }) => type === "welcome"), { type: "welcome" });
    });

    test("two clients chat, a large message included", async () => {
      const [ann, bob] = [await connect(1), await connect(2)];
      const identifier = JSON.stringify({ channel: "UnreadRoomsChannel" });
      for (const client of [ann, bob]) await client.subscribe(identifier);
      const text = "é<&>".repeat(20_000);
      await campfire.broadcast("unread_rooms", { roomId: 1, text });
      for (const client of [ann, bob]) {
        const { message } = await client.next((frame) => frame.identifier === identifier && frame.message);
        assert.deepEqual(message, { roomId: 1, text });
      }
    });

    test("pings pass through while nothing else happens", async () => {
      const client = await connect(1);
      await client.next(({ type }) => type === "ping");
      await client.next(({ type }) => type === "ping");
    });

    test("a client that leaves is a disconnect call, and the close frame passes through", async () => {
      const client = await connect(3);
      await client.subscribe(JSON.stringify({ channel: "HeartbeatChannel" }));
      const before = campfire.callsOf("disconnect").length;
      const { code } = await client.close(1000);
      assert.equal(code, 1000);
      await until("the disconnect call", () => campfire.callsOf("disconnect").length === before + 1);
    });

    test("a remote disconnect reaches the client through the proxy", async () => {
      const client = await connect(2);
      await client.subscribe(JSON.stringify({ channel: "HeartbeatChannel" }));
      await campfire.disconnectUser(2, { reconnect: false });
      const frame = await client.next(({ type }) => type === "disconnect");
      assert.deepEqual(frame, { type: "disconnect", reason: "remote", reconnect: false });
      assert.equal((await client.closed).code, 1000);
    });

    test("a path that is not the cable's goes to the app", async () => {
      assert.equal((await plainRequest(proxy.port, "/page?library=actioncable")).status, 200);
    });

    test("by default the app sees the proxy's address and no forwarding header", async () => {
      await connect(1, { "X-Forwarded-For": FORWARDED });
      const { headers, url } = lastEnv();
      assert.deepEqual(Object.keys(headers).sort(), ["REMOTE_ADDR", "cookie"]);
      assert.equal(headers.REMOTE_ADDR, "127.0.0.1");
      // The scheme stays http and the path is not stripped; the host is what the proxy passes on.
      assert.match(url, /^http:\/\/127\.0\.0\.1:\d+\/cable$/);
    });

    test("with x-forwarded-for among --headers the app sees what the proxy says", async () => {
      await start({ ANYCABLE_HEADERS: "cookie,x-forwarded-for,x-forwarded-proto" });
      await connect(1, { "X-Forwarded-For": FORWARDED });
      const { headers } = lastEnv();
      assert.equal(headers.REMOTE_ADDR, "127.0.0.1", "never taken from a header");
      assert.equal(headers["x-forwarded-for"], Proxy.forwardedFor(FORWARDED));
      assert.equal(headers["x-forwarded-proto"], "http");
    });

    test("the app found nothing wrong with any call", async () => {
      await stop();
      assert.deepEqual(violations, []);
    });
  });
}
