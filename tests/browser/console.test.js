// `ringcable --console` in a real browser, over the demo's app: figures under load, sessions, messages, logins, and what
// axe-core says about all of it. With SCREENSHOT=<file> it also takes the pictures of docs/console.md.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { after, before, test } from "node:test";
import { assertAccessible } from "./support/axe.js";
import { launch, openWindow } from "./support/chromium.js";
import { Ringcable, SECRET, derivedKey, freePort } from "./support/server.js";
import { until } from "./support/until.js";

// A part of the page without imports of its own: it can be asked without a browser.
const figures = await readFile(new URL("../../src/console/page/figures.js", import.meta.url), "utf8");
const { History, bytes, millis, percentile } = await import(`data:text/javascript,${encodeURIComponent(figures)}`);
const PEOPLE = ["Ada", "Grace", "Radia", "Barbara", "Edsger", "Alan", "Margaret", "Katherine", "Donald", "Leslie"];
const CROWD = 150;
const ROOM = JSON.stringify({ channel: "RoomChannel", room_id: 1 });
const UNREAD = JSON.stringify({ channel: "UnreadRoomsChannel" });
const TYPING = JSON.stringify({ channel: "TypingNotificationsChannel", room_id: 1 });
const RECOVERY_MS = 30_000;

let browser;
let ringcable;
let port;
const errors = [];
const clients = [];

before(async () => {
  port = await freePort();
  await startServer();
  browser = await launch();
});
after(async () => {
  await browser?.close();
  for (const client of clients) client.close();
  await ringcable?.stop();
});

const base = () => `http://127.0.0.1:${port}`;

async function startServer() {
  ringcable = await Ringcable.start({
    port,
    args: ["--demo", "--console", `--secret=${SECRET}`, `--port=${port}`, "--host=127.0.0.1", "--cores=2", "--node_id=chat-1"],
  });
}

/** An Action Cable client outside the browser. */
class Client {
  received = [];

  constructor(name, identifiers) {
    this.socket = new WebSocket(`ws://127.0.0.1:${port}/cable?name=${name}`, ["actioncable-v1-json"]);
    this.confirmed = 0;
    this.socket.onmessage = ({ data }) => {
      const message = JSON.parse(data);
      if (message.type === "welcome") for (const identifier of identifiers) this.say({ command: "subscribe", identifier });
      if (message.type === "confirm_subscription") this.confirmed += 1;
      else if (message.type !== "ping") this.received.push(message);
    };
    this.socket.onclose = ({ code, reason }) => { this.closed = { code, reason }; };
  }

  say(command) {
    this.socket.send(JSON.stringify(command));
  }

  close() {
    this.socket.close();
  }
}

async function crowd(count) {
  for (let number = 0; number < count; number += 1) {
    clients.push(new Client(`${PEOPLE[number % PEOPLE.length]}${number}`, [ROOM, UNREAD, TYPING]));
  }
  await until("everybody has subscribed", () => clients.every((client) => client.confirmed === 3), 20_000);
}

async function broadcast(stream, data) {
  const answer = await fetch(`${base()}/_broadcast`, {
    method: "POST",
    headers: { Authorization: `Bearer ${derivedKey("broadcast-cable")}` },
    body: JSON.stringify({ stream, data: JSON.stringify(data) }),
  });
  assert.equal(answer.status, 201);
}

async function openConsole(options) {
  const page = await openWindow(browser, `${base()}/_console`, { errors, ...options });
  page.on("console", (message) => { if (message.type() === "error") errors.push(message.text()); });
  page.on("request", (request) => {
    if (!request.url().startsWith(base())) errors.push(`asked for ${request.url()}`);
  });
  await page.waitForSelector("body[data-phase=live][data-snapshots]");
  return page;
}

const value = (page, card) => page.textContent(`#card-${card} .value`);
const state = (page, id) => page.textContent(`#${id}`);

async function search(page, query) {
  await page.fill("#query", query);
  await page.press("#query", "Enter");
  await page.waitForFunction(() => !/^(Searching|Look for)/.test(document.getElementById("search-state").textContent));
}

const overflow = (page) => page.evaluate(() => document.scrollingElement.scrollWidth - document.scrollingElement.clientWidth);

test("figures are what the counters say", () => {
  const bounds = [1_000, 2_500, 5_000];
  assert.equal(percentile([0, 0, 0, 0], bounds, 0.5), null);
  assert.equal(percentile([], undefined, 0.5), null);
  assert.equal(percentile([10, 0, 0, 0], bounds, 0.5), 0.5);
  assert.equal(percentile([0, 10, 0, 0], bounds, 1), 2.5);
  assert.equal(percentile([0, 0, 0, 10], bounds, 0.99), 5);
  // As wide as their card, whatever comes.
  const shown = [0.083_33, 0.833_33, 1, 9.876, 83.33, 833.3, 1_234, 98_765];
  assert.deepEqual(shown.map(millis), ["0.083 ms", "0.83 ms", "1 ms", "9.9 ms", "83 ms", "833 ms", "1.2 s", "99 s"]);
  assert.deepEqual([999, 1_234, 4_410_000].map(bytes), ["999 B", "1.23 kB", "4.41 MB"]);

  const shard = { sessions: 0, accepted: 0, closed: 0, messages: 0, publications: 0, deliveries: 0, sent_bytes: 0, outbox_bytes: 0, inbox_depth: 0, slow: 0 };
  const snapshot = (seconds, deliveries, node = "a") => ({
    node, now_ms: seconds * 1000, uptime_secs: seconds, private_bytes: 3e6, private_bytes_at_start: 2e6, streams: 0, users: 0, rpc: null,
    shards: [{ ...shard, deliveries, sessions: 2000 }, { ...shard, deliveries }],
  });
  const history = new History();
  history.add(snapshot(1, 50));
  assert.equal(history.samples[0].deliveries, null);
  history.add(snapshot(3, 100));
  const sample = history.samples[1];
  assert.deepEqual([sample.deliveries, sample.shards[0].deliveries, sample.perSession, sample.median], [50, 25, 500, null]);
  for (let seconds = 4; seconds < 100; seconds += 1) history.add(snapshot(seconds, 100));
  assert.equal(history.samples.length, 61);
  history.add(snapshot(100, 7, "b"));
  assert.equal(history.samples.length, 1, "a restarted server begins anew");
});

test("figures move with the load", async () => {
  const page = await openConsole();
  assert.equal(await value(page, "sessions"), "0");
  assert.equal(await value(page, "memory"), "–");
  await crowd(CROWD);
  await page.waitForFunction((count) => document.querySelector("#card-sessions .value").textContent === count, String(CROWD));
  await page.waitForFunction(() => document.querySelector("#card-rpc .value").textContent !== "–");
  await page.waitForFunction(() => document.querySelector("#card-streams .value").textContent !== "0");
  assert.match(await page.textContent("#card-memory .note"), /^[\d,.]+ MB in all$/);
  assert.equal(await value(page, "deliveries"), "0");
  const before = clients[0].received.length;
  for (let round = 0; round < 20; round += 1) await broadcast("unread_rooms", { round });
  await until("the messages are there", () => clients[0].received.length >= before + 20);
  await page.waitForFunction(() => /highest [1-9]/.test(document.querySelector("#card-deliveries svg").getAttribute("aria-label")));
  assert.match(await page.getAttribute("#card-deliveries path.line", "d"), / L /);

  await page.click("text=The last minute as a table");
  assert.ok(await page.locator("#minute tr").count() >= 1);
  const shards = await page.locator("#shards tr td:nth-of-type(1)").allTextContents();
  assert.deepEqual([shards.length, shards.reduce((sum, text) => sum + Number(text), 0)], [2, CROWD]);
  assert.match(await page.textContent("#about"), /^node chat-1 · ringcable .* · (io_uring|epoll) · up /);
  await page.context().close();
});

test("the last minute outlives a reload", async () => {
  const page = await openConsole();
  const seconds = () => page.evaluate(() => Number(/the last (\d+) seconds/.exec(document.querySelector("#card-sessions svg").getAttribute("aria-label"))?.[1]));
  await page.waitForFunction(() => Number(document.body.dataset.snapshots) >= 4);
  const before = await seconds();
  await page.reload();
  await page.waitForSelector("body[data-phase=live][data-snapshots]");
  assert.ok(await seconds() > before, "the seconds before the reload are there");
  await page.context().close();
});

test("a session is found, shown, spoken to and ended, by keyboard alone", async () => {
  const page = await openConsole();
  await search(page, "nobody-is-called-so");
  assert.match(await state(page, "search-state"), /^No session has “nobody-is-called-so”/);
  await search(page, "");
  assert.match(await state(page, "search-state"), /^The first 50 sessions; there are more/);
  await search(page, "Radia72");
  assert.equal(await state(page, "search-state"), "1 session found.");
  const radia = clients[72];

  await page.focus(".session summary");
  await page.keyboard.press("Enter");
  assert.deepEqual(await page.locator(".subscriptions .channel").allTextContents(), ["RoomChannel", "UnreadRoomsChannel", "TypingNotificationsChannel"]);
  await page.locator(".stream", { hasText: "unread_rooms" }).focus();
  await page.keyboard.press("Enter");
  assert.equal(await page.inputValue("#stream"), "unread_rooms");
  await page.keyboard.type('{"from": "the console"}');
  await page.keyboard.press("Tab");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => /^Published/.test(document.getElementById("publish-state").textContent));
  assert.equal(await state(page, "publish-state"), `Published to ${CROWD} subscriptions.`);
  await until("the message is there", () => radia.received.some(({ message }) => message?.from === "the console"));
  await page.fill("#stream", "nobody-listens");
  await page.click("#publish button");
  await page.waitForFunction(() => /nobody listens/.test(document.getElementById("publish-state").textContent));

  await page.focus(".session .danger");
  await page.keyboard.press("Enter");
  await page.waitForSelector("#disconnect[open]");
  await assertAccessible(page, "the question");
  assert.match(await state(page, "disconnect-text"), /Radia\d*, session \S+, gets .* no ban/);
  await page.keyboard.press("Escape");
  await page.waitForSelector("#disconnect:not([open])", { state: "attached" });
  assert.equal(radia.closed, undefined);
  assert.ok(await page.evaluate(() => document.activeElement.matches(".session .danger")), "the focus is back where it was");

  await page.keyboard.press("Enter");
  await page.focus("#reconnect");
  await page.keyboard.press("Space");
  await page.focus("#disconnect .danger");
  await page.keyboard.press("Enter");
  await until("the client is told", () => radia.closed);
  assert.deepEqual(radia.closed, { code: 1000, reason: "Closed remotely" });
  assert.deepEqual(radia.received.at(-1), { type: "disconnect", reason: "remote", reconnect: false });
  await page.waitForSelector(".session", { state: "detached" });
  assert.match(await state(page, "search-state"), /^Session \S+ of .*Radia\d* is disconnected\.$/);
  assert.equal(await page.evaluate(() => document.activeElement.id), "search-state");
  await page.waitForFunction((count) => document.querySelector("#card-sessions .value").textContent === count, String(CROWD - 1));
  clients.splice(72, 1);
  await page.context().close();
});

const listed = (page) => page.locator("#streams .stream").allTextContents();

async function searchStreams(page, query, order) {
  await page.fill("#stream-query", query);
  if (order) await page.selectOption("#order", order);
  await page.press("#stream-query", "Enter");
  await page.waitForFunction(() => !/^(Searching|Look for)/.test(document.getElementById("streams-state").textContent));
}

test("streams are found, and one is shown with its history, members and listeners, by keyboard alone", async () => {
  await broadcast("announcements", { text: "<b>Lunch</b> is ready" });
  const page = await openConsole();
  await searchStreams(page, "no-stream-is-called-so");
  assert.match(await state(page, "streams-state"), /^No stream has “no-stream-is-called-so”/);
  assert.equal(await page.locator("#streams-found").isVisible(), false);
  await searchStreams(page, "");
  assert.ok((await listed(page)).slice(0, 3).includes("unread_rooms"));
  assert.equal(await page.textContent("#streams td >> nth=0"), String(clients.length));
  await searchStreams(page, "Rooms::Open/1", "listeners");
  assert.ok((await page.locator("#streams .note").allTextContents()).includes("room:gid://ringcable-demo/Rooms::Open/1"));
  await searchStreams(page, "_reads");
  assert.deepEqual((await page.locator("#streams .note").allTextContents()).filter((text) => !/^user_gid:\/\/ringcable-demo\/User\/\w+_reads$/.test(text)), []);
  await searchStreams(page, "announce", "bytes");
  assert.deepEqual(await listed(page), ["announcements"]);
  assert.deepEqual((await page.locator("#streams td").allTextContents()).slice(0, 2), ["0", "1"]);
  await page.waitForFunction(() => document.querySelector("#card-stored .value")?.textContent !== "0");
  assert.match(await page.textContent("#card-held .note"), /^of [\d.]+ [MG]B$/);

  await page.focus("#streams .stream");
  await page.keyboard.press("Enter");
  await page.waitForSelector("#stream-parts .kept");
  assert.equal(await page.evaluate(() => document.activeElement.id), "stream-name");
  assert.equal(await state(page, "stream-name"), "announcements");
  const parts = await state(page, "stream-parts");
  assert.match(parts, /offsets 1 to 1.*Messages1#1.*<b>Lunch<\/b>.*Members0Nobody is present\.Listeners0Nobody listens\./);
  await page.focus("#message-stream");
  await page.keyboard.press("Enter");
  await page.keyboard.type('"dinner"');
  await page.keyboard.press("Tab");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => /#2.*dinner/.test(document.getElementById("stream-parts").textContent));
  await page.focus("#close-stream");
  await page.keyboard.press("Enter");
  assert.equal(await page.locator("#stream-detail").isVisible(), false);
  assert.equal(await page.evaluate(() => document.activeElement.id), "stream-query");

  const presence = JSON.stringify({ channel: "PresenceChannel", room_id: 1 });
  clients[0].say({ command: "subscribe", identifier: presence });
  clients[0].say({ command: "join", identifier: presence, presence: { id: "15", info: { name: "Ada" } } });
  await until("she is there", async () => {
    await searchStreams(page, "presence:", "members");
    return await page.locator("#streams td:last-child >> nth=0").textContent() === "1";
  });
  await page.click("#streams .stream >> nth=0");
  await page.waitForSelector("#stream-parts .kept");
  assert.match(await state(page, "stream-parts"), /Members1.*15.*\{"name":"Ada"\}.*Listeners1.*Ada0/);
  await page.context().close();
});

test("names of strangers are text, not markup", async () => {
  const eve = new Client(encodeURIComponent("<img src=x>"), [JSON.stringify({ channel: "UnreadRoomsChannel", x: "<b>y</b>" })]);
  clients.push(eve);
  const page = await openConsole();
  await until("Eve is there", async () => {
    await search(page, "<img");
    return await state(page, "search-state") === "1 session found.";
  });
  assert.equal(await page.locator("#found img, #found b").count(), 0);
  eve.close();
  clients.pop();
  await page.context().close();
});

test("warnings appear as they happen", async () => {
  const page = await openConsole();
  const seen = await page.locator(".record").count();
  clients[0].say({ command: "message", identifier: "nothing", data: "{}" });
  await page.waitForFunction((before) => document.querySelectorAll(".record").length > before, seen);
  assert.equal(await page.textContent(".record:first-child .level"), "Warning");
  assert.match(await page.textContent(".record:first-child"), /failed to handle incoming message.*unknown subscription/);
  await page.context().close();
});

test("axe-core has nothing to say, in both schemes and at every width", async () => {
  for (const colorScheme of ["light", "dark"]) {
    const page = await openConsole({ colorScheme });
    await search(page, "Ada");
    await page.click(".session summary >> nth=0");
    await page.click("text=The last minute as a table");
    await searchStreams(page, "", "messages");
    await page.click("#streams .stream >> nth=0");
    await page.waitForSelector("#stream-parts .kept");
    await assertAccessible(page, colorScheme);
    if (process.env.SHOTS) await page.screenshot({ path: `${process.env.SHOTS}/console-${colorScheme}.png`, fullPage: true });
    for (const width of [1180, 720, 360]) {
      await page.setViewportSize({ width, height: 800 });
      assert.equal(await overflow(page), 0, `${colorScheme} at ${width}`);
    }
    await assertAccessible(page, `${colorScheme}, narrow`);
    if (process.env.SHOTS) await page.screenshot({ path: `${process.env.SHOTS}/console-phone-${colorScheme}.png`, fullPage: true });
    await page.context().close();
  }
});

if (process.env.SCREENSHOT) {
  test("pictures", async () => {
    const pages = await Promise.all(["light", "dark"].map((colorScheme) => openConsole({ colorScheme, viewport: { width: 1280, height: 1760 } })));
    const end = Date.now() + 75_000;
    for (let round = 0; Date.now() < end; round += 1) {
      const wave = 1 + Math.round(2 + 2 * Math.sin(round / 5));
      for (let each = 0; each < wave; each += 1) await broadcast("unread_rooms", { round });
      for (let each = 0; each < 5 + 4 * Math.sin(round / 4); each += 1) {
        const client = clients[(round * 7 + each) % CROWD];
        client.say({ command: "message", identifier: TYPING, data: JSON.stringify({ action: "start" }) });
      }
      if (clients.length < 2400) {
        for (let each = 0; each < 50; each += 1) clients.push(new Client(`${PEOPLE[each % PEOPLE.length]}-${round}-${each}`, [UNREAD]));
      }
      if (round % 40 === 20) clients[3].say({ command: "message", identifier: "nothing", data: "{}" });
      await new Promise((resolve) => setTimeout(resolve, 350));
    }
    for (const [index, page] of pages.entries()) {
      await search(page, "User/Ada130");
      await page.click(".session summary >> nth=0");
      await searchStreams(page, "", "messages");
      await page.click("#streams .stream >> nth=0");
      await page.waitForSelector("#stream-parts .kept");
      await page.evaluate(() => scrollTo(0, 0));
      await page.fill("#stream", "unread_rooms");
      await page.fill("#message", '{"hello": "from the console"}');
      await page.click("#publish button");
      await page.waitForFunction(() => /^Published/.test(document.getElementById("publish-state").textContent));
      await page.evaluate(() => document.activeElement.blur());
      await page.mouse.move(0, 0);
      await broadcast("unread_rooms", {});
      await page.waitForTimeout(1_000);
      await page.screenshot({ path: index === 0 ? process.env.SCREENSHOT : process.env.SCREENSHOT.replace(/\.png$/, "-dark.png") });
      await page.context().close();
    }
  });
}

test("a lost connection is said, and made again", async () => {
  const page = await openConsole();
  errors.length = 0;
  await ringcable.stop();
  await page.waitForSelector("body[data-phase=lost]");
  assert.equal(await state(page, "state"), "Connection lost, trying again");
  assert.match(await page.title(), /^\(Connection lost/);
  await search(page, "Radia72");
  assert.equal(await state(page, "search-state"), "The server does not answer.");
  clients.length = 0;
  await startServer();
  await page.waitForSelector("body[data-phase=live]", { timeout: RECOVERY_MS });
  await page.waitForFunction(() => document.querySelector("#card-sessions .value").textContent === "0");
  // What was wrong is over.
  assert.equal(await state(page, "search-state"), "");
  // What the browser itself says about the connections that were refused meanwhile.
  errors.splice(0, errors.length, ...errors.filter((text) => !/ERR_CONNECTION_REFUSED|ERR_EMPTY_RESPONSE|WebSocket connection/.test(text)));
  await page.context().close();
});

test("who is not on this machine logs in, and out", async () => {
  const open = await freePort();
  const server = await Ringcable.start({ port: open, args: ["--console", "--norpc", `--secret=${SECRET}`, `--port=${open}`, "--host=0.0.0.0"] });
  try {
    const page = await openWindow(browser, `http://127.0.0.1:${open}/_console`, { errors });
    await page.waitForURL("**/_console/login");
    await assertAccessible(page, "the login");
    await page.fill("#token", "a guess");
    await page.press("#token", "Enter");
    await page.waitForSelector("[role=alert]");
    await assertAccessible(page, "the login after a wrong word");
    assert.equal(await overflow(page), 0);
    await page.fill("#token", derivedKey("console-cable"));
    await page.press("#token", "Enter");
    await page.waitForSelector("body[data-phase=live][data-snapshots]");
    const [cookie] = await page.context().cookies(`http://127.0.0.1:${open}/_console`);
    assert.deepEqual([cookie.name, cookie.httpOnly, cookie.sameSite, cookie.path], ["ringcable_console", true, "Strict", "/_console"]);
    await search(page, "");
    assert.equal(await state(page, "search-state"), "Nobody is connected.");
    await page.click("text=Log out");
    await page.waitForURL("**/_console/login");
    await page.goto(`http://127.0.0.1:${open}/_console`);
    await page.waitForURL("**/_console/login");
    await page.context().close();
  } finally {
    await server.stop();
  }
});

test("no script error happened in any window", () => assert.deepEqual(errors, []));
