// Ten minutes of silence behind each proxy: no drop, and pings at their interval. Takes as long as it says, so it runs only
// with RINGCABLE_LONG=1 (`npm run test:long`). RINGCABLE_IDLE_SECS shortens it.

import assert from "node:assert/strict";
import { test } from "node:test";
import { Campfire, sessionCookie } from "../browser/support/campfire.js";
import { Ringcable, freePort } from "../browser/support/server.js";
import { CableClient } from "./support/client.js";
import { PROXIES } from "./support/proxies.js";

const IDLE_MS = Number(process.env.RINGCABLE_IDLE_SECS ?? 600) * 1000;
const PING_MS = 3000;
// The browser client gives a connection up after 6 s of silence.
const GAP_MS_MAX = 6000;
const skip = process.env.RINGCABLE_LONG ? false : "set RINGCABLE_LONG=1";

for (const Proxy of PROXIES) {
  test(`${Proxy.name}: an idle connection lives on for ${IDLE_MS / 1000} s`, { skip, timeout: IDLE_MS + 60_000 }, async () => {
    const campfire = await Campfire.start();
    const port = await freePort();
    campfire.useServer(port);
    const ringcable = await Ringcable.start({ port, rpcUrl: campfire.rpcUrl });
    const proxy = await Proxy.start({ cablePort: port, appUrl: campfire.url });
    try {
      const cookie = `session_token=${encodeURIComponent(sessionCookie(1))}`;
      const client = await CableClient.open(`ws://127.0.0.1:${proxy.port}/cable`, { Cookie: cookie });
      const identifier = JSON.stringify({ channel: "UnreadRoomsChannel" });
      await client.subscribe(identifier);

      const started = Date.now();
      const arrivals = [];
      while (Date.now() - started < IDLE_MS) {
        await Promise.race([
          client.next(({ type }) => type === "ping", GAP_MS_MAX).then(() => arrivals.push(Date.now())),
          client.closed.then(({ code, reason }) => assert.fail(`closed with ${code} ${reason} after ${Date.now() - started} ms`)),
        ]);
      }
      const gaps = arrivals.slice(1).map((at, index) => at - arrivals[index]);
      const mean = gaps.reduce((sum, gap) => sum + gap, 0) / gaps.length;
      console.log(`${Proxy.name}: ${arrivals.length} pings, gaps ${Math.min(...gaps)} to ${Math.max(...gaps)} ms, mean ${mean.toFixed(0)} ms`);
      assert.ok(Math.abs(mean - PING_MS) < PING_MS * 0.05, `mean gap ${mean} ms`);

      // Still good for something: a broadcast arrives.
      await campfire.broadcast("unread_rooms", { roomId: 1 });
      const { message } = await client.next((frame) => frame.identifier === identifier && frame.message);
      assert.deepEqual(message, { roomId: 1 });
      client.terminate();
      assert.deepEqual(campfire.violations, []);
    } finally {
      await proxy.stop();
      await ringcable.stop("SIGKILL");
      await campfire.stop();
    }
  });
}
