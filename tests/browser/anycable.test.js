// @anycable/core, @anycable/web and @anycable/turbo-stream in a real browser, with a broker: what is missed while the network
// is gone, while the connection is silent, and while the server restarts.

import assert from "node:assert/strict";
import { after, afterEach, before, beforeEach, test } from "node:test";
import { launch, openWindow } from "./support/chromium.js";
import { Line } from "./support/line.js";
import { Network } from "./support/network.js";
import { Rooms, signedName } from "./support/rooms.js";
import { Ringcable, freePort } from "./support/server.js";
import { until } from "./support/until.js";

const BROKER = ["--broker=memory", "--public_streams", "--turbo_streams", "--history_limit=100000", "--ping_interval=1"];
// A client that misses pings for three seconds looks for another connection.
const OPTIONS = { pingInterval: 1500, maxMissingPings: 2, logLevel: "error" };
const RECOVERY_MS = 30_000;
const MISSED = 20;
const ROOM = { id: 1 };
const ROOM_ID = JSON.stringify({ channel: "RoomChannel", id: 1 });

let browser;
let app;
let line;
let ringcable;
let errors;

before(async () => { browser = await launch(); });
after(() => browser?.close());

beforeEach(async () => {
  errors = [];
  app = await Rooms.start();
});

afterEach(async () => {
  await Promise.all(browser.contexts().map((context) => context.close()));
  await line?.stop();
  await ringcable?.stop("SIGKILL");
  await app?.stop();
  assert.deepEqual(errors, [], "no script error happened in any window");
});

/** The server, and the line that leads to it. */
async function serve(...args) {
  app.port = await freePort();
  await startServer(...args);
  line = await Line.to(app.port);
  app.cableUrl = `ws://127.0.0.1:${line.port}/cable`;
}

async function startServer(...args) {
  ringcable = await Ringcable.start({ port: app.port, rpcUrl: app.rpcUrl, args: [...BROKER, ...args] });
}

async function enter(library = "web", options = {}, query = "") {
  const page = await openWindow(browser, `${app.url}/page?${query}`, { errors });
  await page.waitForFunction(() => window.client);
  await page.evaluate(([name, given]) => window.client.connect(name, given), [library, { ...OPTIONS, ...options }]);
  return page;
}

const subscribe = (page, name, params) => page.evaluate(([n, p]) => window.client.subscribe(n, p), [name, params]);
const look = (page) => page.evaluate(() => window.client.look());
const channelOf = async (page, name) => (await look(page)).channels[name];
const range = (from, to) => Array.from({ length: to - from + 1 }, (_, index) => from + index);
const numbersOf = ({ messages }) => messages.map(({ n }) => n);

/** Waits until the channel has got the last number of its stream, and says that it has got all, once and in order. */
async function assertExact(page, name, stream, from = 1) {
  const last = app.numbers.get(stream);
  await until(`number ${last} of ${stream}`, async () => numbersOf(await channelOf(page, name)).includes(last), RECOVERY_MS);
  const entry = await channelOf(page, name);
  assert.deepEqual(numbersOf(entry), range(from, last), stream);
  const offsets = entry.positions.map(({ offset }) => offset);
  assert.deepEqual(offsets, range(offsets[0], offsets.at(-1)), "positions count with the messages");
}

const connects = async (page) => (await look(page)).events.filter(({ is }) => is === "connect");
const comesBack = (page, times) => until(`the client is back the ${times}. time`, async () => (await connects(page)).length === times, RECOVERY_MS);

/** Waits until as many more numbers are published and the window has got none of them. */
async function missSome(page, name, stream) {
  const from = app.numbers.get(stream);
  const published = (count) => until(`${count} numbers are missed`, () => app.numbers.get(stream) >= from + count);
  // What was under way has arrived by then.
  await published(MISSED);
  const got = numbersOf(await channelOf(page, name)).length;
  await published(2 * MISSED);
  assert.equal(numbersOf(await channelOf(page, name)).length, got, "nothing arrives while the network is gone");
}

const CUTS = {
  // What the browser has open goes with the network. It tries in vain until it is online again.
  offline: async (page, network) => {
    await network.offline();
    const { opened } = line;
    line.reset();
    await until("the client notices", async () => (await look(page)).state !== "connected");
    await missSome(page, "room", "room/1");
    assert.equal(line.opened, opened, "the browser is offline");
    line.restore();
    await network.online();
  },
  // Pings do not come, and nothing else says that the connection is gone.
  silence: async (page) => {
    line.silence();
    await missSome(page, "room", "room/1");
    await until("the client notices", async () => (await look(page)).state !== "connected");
    line.restore();
  },
  end: async () => line.end(),
};

for (const library of ["core", "web"]) {
  test(`${library}: numbered messages are exact across cuts, without a call to the app`, async () => {
    await serve();
    const page = await enter(library);
    const network = await Network.of(page);
    await subscribe(page, "room", ROOM);
    await subscribe(page, "news", { stream: "news" });
    const told = [...app.told];
    assert.deepEqual(told, ["connect", `subscribe ${ROOM_ID}`]);

    const stop = app.count("room/1", "news");
    const cuts = [...Object.values(CUTS), CUTS.offline];
    for (const [index, cut] of cuts.entries()) {
      await until("numbers arrive", async () => numbersOf(await channelOf(page, "news")).includes(app.numbers.get("news") - 1));
      await cut(page, network);
      await comesBack(page, 2 + index);
    }
    await stop();
    await assertExact(page, "room", "room/1");
    await assertExact(page, "news", "news");

    const back = { is: "connect", reconnect: true, restored: true };
    const first = { is: "connect", reconnect: false, restored: false };
    assert.deepEqual(await connects(page), [first, ...cuts.map(() => back)]);
    const room = await channelOf(page, "room");
    assert.deepEqual(room.events, [first, ...cuts.map(() => back)]);
    assert.deepEqual(new Set(room.infos), new Set(["history_received"]));
    const more = app.told.slice(told.length);
    assert.deepEqual(new Set(more), new Set(["disconnect"]), "the app is told of ends, and asked nothing");
  });
}

test("a restored session is the same visitor to the app and may whisper", async () => {
  await serve();
  const [page, other] = [await enter(), await enter()];
  for (const one of [page, other]) await subscribe(one, "room", ROOM);
  const [visitor] = app.calls.filter(({ kind }) => kind === "connect").map(({ sid }) => sid);
  line.reset();
  line.restore();
  for (const one of [page, other]) await comesBack(one, 2);

  const before = app.calls.length;
  await page.evaluate(() => window.client.channel("room").perform("speak", { text: "hi" }));
  await until("the echo", async () => (await channelOf(page, "room")).messages.length === 1);
  const speaks = app.calls.slice(before).filter(({ kind }) => kind === "command");
  assert.deepEqual(speaks.map(({ body }) => [body.command, body.connection_identifiers]), [["message", JSON.stringify({ visitor })]]);
  await page.evaluate(() => window.client.channel("room").whisper({ typing: true }));
  await until("the whisper", async () => (await channelOf(other, "room")).messages.length === 1);
  assert.deepEqual((await channelOf(other, "room")).messages, [{ typing: true }]);
  assert.equal((await channelOf(page, "room")).messages.length, 1);
});

test("who comes back too late for the session gets what was missed all the same", async () => {
  await serve("--sessions_ttl=1");
  const page = await enter();
  const network = await Network.of(page);
  await subscribe(page, "room", ROOM);
  const stop = app.count("room/1");
  await until("numbers arrive", async () => (await channelOf(page, "room")).messages.length > 0);
  await network.offline();
  line.reset();
  await until("the end of the session", () => app.told.includes("disconnect"));
  const ended = Date.now();
  await until("the session is forgotten", () => Date.now() > ended + 2_500);
  await missSome(page, "room", "room/1");
  line.restore();
  await network.online();
  await comesBack(page, 2);
  await stop();
  await assertExact(page, "room", "room/1");
  assert.deepEqual((await connects(page))[1], { is: "connect", reconnect: true, restored: false });
  const { events } = await channelOf(page, "room");
  assert.deepEqual(events.slice(1), [{ is: "disconnect", reason: "recovery_failed" }, { is: "connect", reconnect: true, restored: false }]);
  assert.deepEqual(app.told, ["connect", `subscribe ${ROOM_ID}`, "disconnect", "connect", `subscribe ${ROOM_ID}`]);
});

for (const signal of ["SIGKILL", "SIGTERM"]) {
  test(`after a restart by ${signal} clients are told that history is lost, and go on`, async () => {
    await serve();
    const page = await enter();
    await subscribe(page, "room", ROOM);
    await subscribe(page, "quiet", { stream: "quiet" });
    for (let turn = 0; turn < 3; turn += 1) await app.publishNumber("room/1");
    await until("the numbers", async () => (await channelOf(page, "room")).messages.length === 3);

    await ringcable.stop(signal);
    line.reset();
    await startServer();
    // Nobody is back yet. A position is worth nothing now, but what was published since the client has left is there.
    await app.publishNumber("room/1");
    await app.publishNumber("quiet");
    line.restore();
    await comesBack(page, 2);
    await until("both answers", async () => {
      const { channels } = await look(page);
      return channels.room.infos.length === 2 && channels.quiet.infos.length === 2;
    });
    await app.publishNumber("room/1");
    await app.publishNumber("quiet");
    await until("numbers of the new server", async () => {
      const { channels } = await look(page);
      return channels.room.messages.length === 4 && channels.quiet.messages.length === 2;
    });
    const { channels } = await look(page);
    assert.deepEqual(channels.room.infos, ["history_received", "history_not_found"]);
    assert.deepEqual(numbersOf(channels.room), [1, 2, 3, 5]);
    assert.deepEqual(channels.quiet.infos, ["history_received", "history_received"]);
    assert.deepEqual(numbersOf(channels.quiet), [1, 2]);
    assert.deepEqual((await connects(page))[1], { is: "connect", reconnect: true, restored: false });

    // From here on it is as before the restart.
    line.reset();
    await app.publishNumber("room/1");
    line.restore();
    await comesBack(page, 3);
    await until("the missed one", async () => (await channelOf(page, "room")).messages.length === 5);
    assert.deepEqual(numbersOf(await channelOf(page, "room")), [1, 2, 3, 5, 6]);
    assert.deepEqual((await connects(page))[2], { is: "connect", reconnect: true, restored: true });
  });
}

test("a client that is told to go does not come back as the same session", async () => {
  await serve();
  const [page, banned] = [await enter(), await enter()];
  for (const one of [page, banned]) await subscribe(one, "room", ROOM);
  const identifiers = await Promise.all([page, banned].map(async (one) => JSON.stringify({ visitor: (await look(one)).sid })));
  const told = app.told.length;
  await app.post({ command: "disconnect", payload: { identifier: identifiers[0], reconnect: true } });
  await app.post({ command: "disconnect", payload: { identifier: identifiers[1], reconnect: false } });
  await comesBack(page, 2);
  assert.deepEqual((await connects(page))[1], { is: "connect", reconnect: true, restored: false });
  await until("the ban", async () => (await look(banned)).state === "closed");
  await until("a new subscription", () => app.told.slice(told).includes(`subscribe ${ROOM_ID}`));
  assert.deepEqual(app.told.slice(told).sort(), ["connect", "disconnect", "disconnect", `subscribe ${ROOM_ID}`]);
});

test("members see each other come, stay through a cut, and go", async () => {
  await serve("--presence_ttl=3");
  const [ada, grace] = [await enter(), await enter()];
  for (const page of [ada, grace]) await subscribe(page, "room", ROOM);
  const join = (page, id, info) => page.evaluate(([i, more]) => window.client.channel("room").presence.join(i, more), [id, info]);
  const present = (page) => page.evaluate(() => window.client.channel("room").presence.info());
  const seen = async (page) => (await channelOf(page, "room")).presence.filter(({ type }) => type !== "info");

  await join(ada, 1, { name: "Ada" });
  await until("Ada's join", async () => (await seen(grace)).length === 1);
  assert.deepEqual(await present(grace), { 1: { name: "Ada" } });
  await join(grace, 2, { name: "Grace" });
  await until("Grace's join", async () => (await seen(ada)).length === 2 && (await seen(grace)).length === 2);
  const both = { 1: { name: "Ada" }, 2: { name: "Grace" } };
  assert.deepEqual([await present(ada), await present(grace)], [both, both]);

  // Both are back and have joined again before the time of their old sessions is over: nobody is told anything.
  line.reset();
  line.restore();
  await Promise.all([ada, grace].map((page) => comesBack(page, 2)));
  await grace.evaluate(() => window.client.channel("room").presence.leave());
  await until("Grace's leave", async () => (await seen(ada)).length === 3);
  const joined = [{ type: "join", id: "1", info: { name: "Ada" } }, { type: "join", id: "2", info: { name: "Grace" } }];
  const expected = [...joined, { type: "leave", id: "2" }];
  assert.deepEqual([await seen(ada), await seen(grace)], [expected, expected]);
  assert.deepEqual(await present(grace), { 1: { name: "Ada" } });

  await ada.context().close();
  await until("Ada's leave", async () => (await seen(grace)).length === 4);
  assert.deepEqual((await seen(grace))[3], { type: "leave", id: "1" });
  assert.deepEqual(await present(grace), {});
});

test("a page gets what was published since it was made, by option and by meta tag", async () => {
  await serve();
  const since = Math.floor(Date.now() / 1000);
  for (let turn = 0; turn < 3; turn += 1) await app.publishNumber("news");
  const windows = [
    [await enter("web", { historyTimestamp: since }), [1, 2, 3]],
    [await enter("web", {}, `since=${since}`), [1, 2, 3]],
    [await enter("core", { historyTimestamp: since }), [1, 2, 3]],
    [await enter("core", { historyTimestamp: since + 3600 }), []],
    [await enter("core", { historyTimestamp: false }), []],
  ];
  for (const [page] of windows) await subscribe(page, "news", { stream: "news" });
  await app.publishNumber("news");
  for (const [index, [page, missed]] of windows.entries()) {
    await until("the live one", async () => (await channelOf(page, "news")).messages.length > missed.length);
    assert.deepEqual(numbersOf(await channelOf(page, "news")), [...missed, 4], `window ${index}`);
  }
});

test("a client without session recovery subscribes anew and misses nothing", async () => {
  await serve();
  const page = await enter("core", { protocolOptions: { disableSessionRecovery: true } });
  await subscribe(page, "room", ROOM);
  await app.publishNumber("room/1");
  await until("the first", async () => (await channelOf(page, "room")).messages.length === 1);
  line.reset();
  await app.publishNumber("room/1");
  line.restore();
  await comesBack(page, 2);
  await app.publishNumber("room/1");
  await assertExact(page, "room", "room/1");
  assert.deepEqual(app.told, ["connect", `subscribe ${ROOM_ID}`, "disconnect", "connect", `subscribe ${ROOM_ID}`]);
});

test("a client that wants no history of the past gets what it misses", async () => {
  await serve();
  const page = await enter("core", { historyTimestamp: false });
  await app.publishNumber("room/1");
  await subscribe(page, "room", ROOM);
  await app.publishNumber("room/1");
  await until("the first", async () => (await channelOf(page, "room")).messages.length === 1);
  line.reset();
  await app.publishNumber("room/1");
  line.restore();
  await comesBack(page, 2);
  await app.publishNumber("room/1");
  await assertExact(page, "room", "room/1", 2);
  assert.deepEqual((await connects(page))[1], { is: "connect", reconnect: true, restored: true });
});

test("a client that answers pings stays, and one that does not is sent away and comes back", async () => {
  await serve("--pong_timeout=1");
  const [answers, silent] = [await enter("web", { protocolOptions: { pongs: true } }), await enter("web")];
  for (const page of [answers, silent]) await subscribe(page, "news", { stream: "news" });
  await until("the silent one is sent away", async () => (await look(silent)).events.some(({ reason }) => reason === "no_pong"));
  await comesBack(silent, 2);
  assert.equal((await look(answers)).events.length, 1);
});

test("a signed stream has presence and history, a forged one is rejected", async () => {
  await serve();
  const page = await enter();
  await subscribe(page, "signed", { signed: signedName("secret") });
  await page.evaluate(() => window.client.channel("signed").presence.join(7, "info"));
  await until("the join", async () => (await channelOf(page, "signed")).presence.length === 1);
  line.reset();
  await app.publishNumber("secret");
  line.restore();
  await comesBack(page, 2);
  await assertExact(page, "signed", "secret");
  await assert.rejects(subscribe(page, "forged", { signed: `${signedName("secret")}0` }), /Rejected/);
});

test("Turbo streams that were missed are rendered once and in order", async () => {
  await serve();
  const page = await enter("web", {}, "turbo=chat");
  const network = await Network.of(page);
  const append = (n) => app.publish("chat", `<turbo-stream action="append" target="messages"><template><li>${n}</li></template></turbo-stream>`);
  const shown = () => page.locator("#messages li").allTextContents();
  await page.evaluate(() => window.client.activateTurbo());
  const connected = page.locator("turbo-cable-stream-source[connected]");
  await connected.waitFor({ state: "attached" });
  await append(1);
  await page.waitForSelector("#messages li");

  await network.offline();
  line.reset();
  await until("the client notices", async () => (await look(page)).state !== "connected");
  for (const n of [2, 3, 4]) await append(n);
  assert.deepEqual(await shown(), ["1"]);
  line.restore();
  await network.online();
  await comesBack(page, 2);
  await append(5);
  await until("all of them", async () => (await shown()).length >= 5);
  assert.deepEqual(await shown(), ["1", "2", "3", "4", "5"]);
  assert.deepEqual((await connects(page))[1], { is: "connect", reconnect: true, restored: true });
  assert.deepEqual(app.told.filter((call) => call.startsWith("subscribe")), [], "the server knows Turbo's streams itself");
});
