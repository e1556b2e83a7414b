// EventSource and fetch in a real browser: events, what was missed while the connection was gone, and the ends of a stream.

import assert from "node:assert/strict";
import { after, afterEach, before, beforeEach, test } from "node:test";
import { launch, openWindow } from "./support/chromium.js";
import { Line } from "./support/line.js";
import { Network } from "./support/network.js";
import { Rooms, signedName } from "./support/rooms.js";
import { Ringcable, freePort } from "./support/server.js";
import { until } from "./support/until.js";

const BROKER = ["--broker=memory", "--sse", "--public_streams", "--history_limit=100000", "--ping_interval=1"];
// A browser waits three seconds before it connects again, and longer after an attempt in vain.
const RECOVERY_MS = 30_000;
const MISSED = 20;
const NEWS = JSON.stringify({ channel: "$pubsub", stream_name: "news" });

let browser;
let app;
let line;
let ringcable;
let page;
let errors;

before(async () => { browser = await launch(); });
after(() => browser?.close());

beforeEach(async () => {
  errors = [];
  app = await Rooms.start();
  app.port = await freePort();
  await startServer();
  line = await Line.to(app.port);
  page = await openWindow(browser, `${app.url}/events-page`, { errors });
  await page.waitForFunction(() => window.events);
});

afterEach(async () => {
  await page.context().close();
  await line?.stop();
  await ringcable?.stop("SIGKILL");
  await app?.stop();
  assert.deepEqual(errors, [], "no script error happened in any window");
});

async function startServer() {
  ringcable = await Ringcable.start({ port: app.port, rpcUrl: app.rpcUrl, args: BROKER });
}

const target = (query) => `http://127.0.0.1:${line.port}/events?${new URLSearchParams(query)}`;
const open = (name, query) => page.evaluate(([n, url]) => window.events.open(n, url), [name, target(query)]);
const look = (name) => page.evaluate((n) => window.events.look(n), name);
const of = async (name, type) => (await look(name)).events.filter((event) => event.type === type);
const sees = (name, type, count = 1, limitMs = RECOVERY_MS) =>
  until(`${count} times ${type} of ${name}`, async () => (await of(name, type)).length >= count, limitMs);
const numbersOf = async (name) => (await of(name, "message")).map(({ data }) => JSON.parse(data).n);
const range = (from, to) => Array.from({ length: to - from + 1 }, (_, index) => from + index);

test("messages, typed events, lines and positions arrive as events", async () => {
  await open("news", { stream: "news" });
  await sees("news", "confirm_subscription");
  await app.publish("news", { n: 1 });
  await app.publish("news", "two\nlines\r\nand a third");
  await app.publish("news", { n: 3 }, { broadcast_type: "typed" });
  await app.publish("news", [4], { transient: true });
  await sees("news", "message", 3);
  await sees("news", "ping");
  const events = (await look("news")).events.filter(({ type }) => type !== "ping");
  assert.deepEqual(events.map(({ type }) => type), ["open", "welcome", "confirm_subscription", "message", "message", "typed", "message"]);
  const [epoch] = events[3].id.match(/(?<=^1\/)[^/]+(?=\/news$)/);
  assert.deepEqual(events.slice(3, 6).map(({ id }) => id), [1, 2, 3].map((offset) => `${offset}/${epoch}/news`));
  assert.deepEqual(events.map(({ data }) => data).slice(3, 5), ['{"n":1}', "two\nlines\nand a third"]);
  const typed = { type: "typed", identifier: NEWS, message: { n: 3 }, stream_id: "news", epoch, offset: 3 };
  assert.deepEqual(JSON.parse(events[5].data), typed);
  assert.deepEqual([events[6].data, events[6].id], ["[4]", events[5].id], "the browser keeps the last position");
});

test("numbered messages are exact across cuts", async () => {
  const network = await Network.of(page);
  await open("news", { stream: "news" });
  await open("signed", { signed_stream: signedName("secret") });
  for (const name of ["news", "signed"]) await sees(name, "confirm_subscription");
  const stop = app.count("news", "secret");
  const cuts = [
    () => line.end(),
    () => line.reset(),
    async () => {
      await network.offline();
      line.reset();
    },
  ];
  for (const [index, cut] of cuts.entries()) {
    await until("numbers arrive", async () => (await numbersOf("news")).includes(app.numbers.get("news") - 1));
    await cut();
    await until("the browser notices", async () => (await of("news", "error")).length > index);
    const from = app.numbers.get("news");
    await until("some are missed", () => app.numbers.get("news") >= from + MISSED);
    line.restore();
    await network.online();
    for (const name of ["news", "signed"]) await sees(name, "confirm_history", index + 1);
  }
  await stop();
  for (const [name, stream] of [["news", "news"], ["signed", "secret"]]) {
    const last = app.numbers.get(stream);
    await until("the last number", async () => (await numbersOf(name)).includes(last));
    assert.deepEqual(await numbersOf(name), range(1, last), name);
  }
});

test("a page that asks for history gets it, and gets each message once when it comes back", async () => {
  const since = Math.floor(Date.now() / 1000);
  for (let turn = 0; turn < 3; turn += 1) await app.publishNumber("news");
  await open("news", { stream: "news", history_since: since });
  await sees("news", "confirm_history");
  await app.publishNumber("news");
  line.end();
  await sees("news", "confirm_history", 2);
  await app.publishNumber("news");
  await sees("news", "message", 5);
  assert.deepEqual(await numbersOf("news"), range(1, 5));
});

for (const signal of ["SIGKILL", "SIGTERM"]) {
  test(`after a restart by ${signal} the browser is told that history is lost, and goes on`, async () => {
    await open("news", { stream: "news" });
    await sees("news", "confirm_subscription");
    await app.publishNumber("news");
    await sees("news", "message");
    await ringcable.stop(signal);
    await startServer();
    await sees("news", "reject_history");
    await app.publishNumber("news");
    await sees("news", "message", 2);
    assert.deepEqual(await numbersOf("news"), [1, 2]);
    const told = (await of("news", "disconnect")).map(({ data }) => JSON.parse(data));
    const restart = { type: "disconnect", reason: "server_restart", reconnect: true };
    assert.deepEqual(told, signal === "SIGTERM" ? [restart] : []);
  });
}

test("after a remote disconnect the browser comes back, or waits almost for ever", async () => {
  for (const name of ["back", "banned"]) {
    await open(name, { identifier: JSON.stringify({ channel: "RoomChannel", id: 1 }) });
    await sees(name, "confirm_subscription");
  }
  const [back, banned] = app.calls.filter(({ kind }) => kind === "connect").map(({ sid }) => JSON.stringify({ visitor: sid }));
  await app.post({ command: "disconnect", payload: { identifier: banned, reconnect: false } });
  await app.post({ command: "disconnect", payload: { identifier: back, reconnect: true } });
  await sees("back", "welcome", 2);
  for (const name of ["back", "banned"]) {
    const [{ data }] = await of(name, "disconnect");
    assert.deepEqual(JSON.parse(data), { type: "disconnect", reason: "remote", reconnect: name === "back" });
  }
  // The other one was disconnected first, and has not even tried.
  assert.deepEqual([(await of("banned", "open")).length, (await look("banned")).state], [1, "connecting"]);
});

test("what is refused is not tried again", async () => {
  await open("nothing", {});
  await open("forged", { signed_stream: `${signedName("secret")}0` });
  await open("bad history", { stream: "news", history_since: "x" });
  for (const name of ["nothing", "forged", "bad history"]) {
    await until("the end", async () => (await look(name)).state === "closed");
    assert.deepEqual((await look(name)).events.map(({ type }) => type), ["error"]);
  }
});

test("a raw stream has messages and nothing else", async () => {
  await open("raw", { stream: "news", raw: "1" });
  await open("other", { stream: "news" });
  await sees("other", "ping");
  await app.publish("news", { n: 1 }, { broadcast_type: "typed" });
  await app.publish("news", { n: 2 });
  await sees("raw", "message");
  assert.deepEqual((await look("raw")).events.map(({ type }) => type), ["open", "message"]);
});

test("a fetch subscribes to several streams at once and is present in one of them", async () => {
  const since = Math.floor(Date.now() / 1000);
  await app.publish("news", { n: 1 });
  const sport = JSON.stringify({ channel: "$pubsub", stream_name: "sport" });
  const lines = [
    { command: "subscribe", identifier: NEWS, history: { since } },
    { command: "subscribe", identifier: sport, presence: { id: "7", info: "i" } },
  ];
  await page.evaluate(([url, body]) => window.events.post("both", url, body), [target({}), lines.map((one) => JSON.stringify(one)).join("\n")]);
  await sees("both", "presence");
  await app.publish("sport", { n: 2 });
  await sees("both", "message", 2);
  const events = (await look("both")).events.filter(({ type }) => type !== "ping");
  const confirmed = events.filter(({ type }) => type === "confirm_subscription").map(({ data }) => JSON.parse(data).identifier);
  assert.deepEqual(confirmed, [NEWS, sport]);
  const messages = events.filter(({ type }) => type === "message");
  const shapes = messages.map(({ data, id }) => {
    const { identifier, message, stream_id, epoch, offset } = JSON.parse(data);
    return [identifier, message, stream_id, id === `${offset}/${epoch}/${stream_id}`];
  });
  assert.deepEqual(shapes, [[NEWS, { n: 1 }, "news", true], [sport, { n: 2 }, "sport", true]]);
  const [{ data }] = events.filter(({ type }) => type === "presence");
  assert.deepEqual(JSON.parse(data).message, { type: "join", id: "7", info: "i" });
});
