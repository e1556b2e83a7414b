// promtool reads /metrics of a server that has done real work.

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { test } from "node:test";
import { Campfire, sessionCookie } from "../browser/support/campfire.js";
import { Ringcable, freePort } from "../browser/support/server.js";
import { until } from "../browser/support/until.js";
import { CableClient, plainRequest } from "./support/client.js";

const PROMTOOL = process.env.PROMTOOL_BIN ?? "promtool";

test("promtool accepts /metrics, and what happened is counted there", async () => {
  const campfire = await Campfire.start();
  const port = await freePort();
  campfire.useServer(port);
  const overrides = { ANYCABLE_METRICS_HTTP: "/metrics", ANYCABLE_STATS_REFRESH_INTERVAL: "1" };
  const ringcable = await Ringcable.start({ port, rpcUrl: campfire.rpcUrl, overrides });
  try {
    const cookie = `session_token=${encodeURIComponent(sessionCookie(1))}`;
    const client = await CableClient.open(`ws://127.0.0.1:${port}/cable`, { Cookie: cookie });
    const identifier = JSON.stringify({ channel: "UnreadRoomsChannel" });
    await client.subscribe(identifier);
    await campfire.broadcast("unread_rooms", { roomId: 1 });
    await client.next((frame) => frame.identifier === identifier && frame.message);

    const metrics = await until("the polled gauges have seen the client", async () => {
      const text = await (await plainRequest(port, "/metrics")).text();
      return valueOf(text, "clients_num") === 1 && text;
    });
    assert.equal(valueOf(metrics, "broadcast_msg_total"), 1);
    assert.equal(valueOf(metrics, "rpc_call_total"), 2, "connect and subscribe");
    assert.equal(valueOf(metrics, "failed_auths_total"), 0);

    const { error, status, stdout, stderr } = spawnSync(PROMTOOL, ["check", "metrics"], { input: metrics, encoding: "utf8" });
    assert.ifError(error);
    assert.deepEqual({ status, stdout, stderr }, { status: 0, stdout: "", stderr: "" });
    client.terminate();
  } finally {
    await ringcable.stop("SIGKILL");
    await campfire.stop();
  }
});

/** Value of the reference's metric `name`; labels, if any, are ignored. */
function valueOf(text, name) {
  const line = text.split("\n").find((candidate) => new RegExp(`^anycable_go_${name}(\\{[^}]*\\})? `).test(candidate));
  return line === undefined ? undefined : Number(line.split(" ").at(-1));
}
