// Real Action Cable clients in a real browser against ringcable and a Campfire double: the published @rails/actioncable and
// the copy that turbo-rails carries.

import assert from "node:assert/strict";
import { after, afterEach, before, beforeEach, test } from "node:test";
import { Campfire, roomGid, sessionCookie, signedStreamName, userGid } from "./support/campfire.js";
import { launch, openWindow } from "./support/chromium.js";
import { Ringcable, freePort } from "./support/server.js";
import { until } from "./support/until.js";

const LIBRARIES = ["actioncable", "turbo"];
// The client looks every 6 s (with jitter: up to 12 s) whether its connection is gone.
const RECOVERY_MS = 45_000;
const MESSAGES = `${roomGid(1)}:messages`;

const CHANNELS = {
  presence: { channel: "PresenceChannel", room_id: 1 },
  typing: { channel: "TypingNotificationsChannel", room_id: 1 },
  heartbeat: { channel: "HeartbeatChannel" },
  unreadRooms: { channel: "UnreadRoomsChannel" },
  userUnreadRooms: { channel: "UserUnreadRoomsChannel" },
  unreadNotifications: { channel: "UnreadNotificationsChannel" },
  roomList: { channel: "RoomListChannel" },
  userInvolvements: { channel: "UserInvolvementsChannel" },
  readRooms: { channel: "ReadRoomsChannel" },
  room: { channel: "RoomChannel", room_id: 1 },
  inboxMentions: { channel: "InboxMentionsChannel" },
  inboxThreads: { channel: "InboxThreadsChannel" },
};

let browser;
let campfire;
let ringcable;
let errors;

before(async () => { browser = await launch(); });
after(() => browser?.close());

beforeEach(async () => {
  errors = [];
  campfire = await Campfire.start();
  const port = await freePort();
  campfire.useServer(port);
  ringcable = await Ringcable.start({ port, rpcUrl: campfire.rpcUrl });
});

afterEach(async () => {
  await Promise.all(browser.contexts().map((context) => context.close()));
  await ringcable?.stop("SIGKILL");
  await campfire?.stop();
});

async function enter(userId, { library = "actioncable", streams = [] } = {}) {
  const query = new URLSearchParams([["library", library], ...streams.map((name) => ["stream", name])]);
  const cookies = [{ name: "session_token", value: encodeURIComponent(sessionCookie(userId)), url: campfire.url }];
  const page = await openWindow(browser, `${campfire.url}/page?${query}`, { cookies: userId ? cookies : [], errors });
  await page.waitForFunction(() => window.campfireReady);
  return page;
}

const look = (page) => page.evaluate(() => window.campfire.look());
const perform = (page, name, action) => page.evaluate(([n, a]) => window.campfire.perform(n, a), [name, action]);
const say = (page, roomId, body) => page.evaluate(([id, text]) =>
  fetch(`/rooms/${id}/messages`, { method: "POST", body: text }).then(({ status }) => status), [roomId, body]);

async function subscribe(page, channels) {
  for (const [name, params] of Object.entries(channels)) {
    await page.evaluate(([n, p]) => window.campfire.subscribe(n, p), [name, params]);
  }
  await confirmed(page, Object.keys(channels), 1);
}

async function confirmed(page, names, times, limitMs) {
  const all = async () => {
    const { subscriptions } = await look(page);
    return names.every((name) => subscriptions[name].connected >= times);
  };
  await until(`${names.join(", ")} confirmed ${times} times`, all, limitMs);
}

async function received(page, name, matches, limitMs) {
  const found = async () => (await look(page)).subscriptions[name].received.find(matches);
  return until(`a message for ${name}`, found, limitMs);
}

function assertClean() {
  assert.deepEqual(campfire.violations, []);
  assert.deepEqual(errors, []);
}

for (const library of LIBRARIES) {
  test(`${library}: all twelve Campfire channels and a Turbo stream are confirmed`, async () => {
    const page = await enter(1, { library, streams: library === "turbo" ? [MESSAGES, "rooms"] : [] });
    await subscribe(page, CHANNELS);
    if (library === "turbo") {
      await page.waitForFunction(() =>
        [...document.querySelectorAll("turbo-cable-stream-source")].every((source) => source.hasAttribute("connected")));
    } else {
      await subscribe(page, { turbo: { channel: "Turbo::StreamsChannel", signed_stream_name: signedStreamName(MESSAGES) } });
    }
    assert.equal((await look(page)).protocol, "actioncable-v1-json");
    assert.equal(campfire.callsOf("connect").length, 1);
    const subscribes = campfire.callsOf("command", { command: "subscribe" }).map(({ body }) => body.identifier);
    assert.equal(new Set(subscribes).size, subscribes.length, "one call per identifier");
    assertClean();
  });

  test(`${library}: a foreign room and a bad Turbo signature are rejected`, async () => {
    const page = await enter(1, { library });
    const refused = {
      foreign: { channel: "RoomChannel", room_id: 9 },
      forged: { channel: "Turbo::StreamsChannel", signed_stream_name: "InJvb21zIg==--0000" },
    };
    for (const [name, params] of Object.entries(refused)) {
      await page.evaluate(([n, p]) => window.campfire.subscribe(n, p), [name, params]);
    }
    await until("both are rejected", async () => {
      const { subscriptions } = await look(page);
      return subscriptions.foreign.rejected === 1 && subscriptions.forged.rejected === 1;
    });
    assertClean();
  });

  test(`${library}: two windows chat, see each other type, and a third gets the unread mark`, async () => {
    const streams = library === "turbo" ? [MESSAGES] : [];
    const turbo = { channel: "Turbo::StreamsChannel", signed_stream_name: signedStreamName(MESSAGES) };
    const inRoom = { typing: CHANNELS.typing, presence: CHANNELS.presence, ...(library === "actioncable" && { turbo }) };
    const [ann, bob, eve] = [await enter(1, { library, streams }), await enter(2, { library, streams }), await enter(3, { library })];
    await subscribe(ann, inRoom);
    await subscribe(bob, inRoom);
    await subscribe(eve, { unreadRooms: CHANNELS.unreadRooms });
    for (const page of library === "turbo" ? [ann, bob] : []) {
      await page.waitForSelector("turbo-cable-stream-source[connected]", { state: "attached" });
    }
    assert.equal(campfire.present.get(1).size, 2);

    await perform(ann, "typing", "start");
    const typing = await received(bob, "typing", ({ action }) => action === "start");
    assert.deepEqual(typing.user, { id: 1, name: "User 1" });

    assert.equal(await say(ann, 1, "Hello <Bob> & all"), 204);
    assert.equal(await say(bob, 1, "Hello Ann"), 204);
    for (const page of [ann, bob]) {
      if (library === "turbo") {
        // Turbo itself took the frame and changed the page.
        await page.waitForFunction(() => document.querySelectorAll("#messages_room_1 p").length === 2);
        assert.deepEqual(await page.locator("#messages_room_1 p").allTextContents(), ["Hello <Bob> & all", "Hello Ann"]);
      } else {
        const first = await received(page, "turbo", (html) => html.includes("Hello &lt;Bob&gt; &amp; all"));
        assert.ok(first.startsWith('<turbo-stream action="append"'), first);
        await received(page, "turbo", (html) => html.includes("Hello Ann"));
      }
    }
    assert.equal((await received(eve, "unreadRooms", () => true)).roomId, 1);

    await bob.context().close();
    await until("presence goes away with the tab", () => campfire.present.get(1).size === 1);
    const { body } = await until("one disconnect call", () => campfire.callsOf("disconnect")[0]);
    assert.equal(body.subscriptions.length, 3);
    assertClean();
  });

  // SIGTERM says goodbye, SIGKILL does not: the client has to come back from both.
  const signal = library === "turbo" ? "SIGTERM" : "SIGKILL";
  test(`${library}: after ${signal} and a restart everything is subscribed again without help`, async () => {
    const page = await enter(1, { library });
    const names = Object.keys(CHANNELS);
    await subscribe(page, CHANNELS);
    const { port } = ringcable;
    const end = await ringcable.stop(signal);
    if (signal === "SIGTERM") assert.deepEqual(end, { code: 0, signal: null });
    await until("the page notices", async () => !(await look(page)).open);
    assert.equal((await look(page)).retrying, true);

    ringcable = await Ringcable.start({ port, rpcUrl: campfire.rpcUrl });
    await confirmed(page, names, 2, RECOVERY_MS);
    await campfire.broadcast(`user_1_notifications`, { roomId: 7 });
    assert.deepEqual(await received(page, "unreadNotifications", () => true), { roomId: 7 });
    assertClean();
  });

  test(`${library}: a banned user's windows all close and stay closed, another's come back`, async () => {
    const channels = { heartbeat: CHANNELS.heartbeat };
    const banned = [await enter(1, { library }), await enter(1, { library })];
    const other = await enter(2, { library });
    for (const page of [...banned, other]) await subscribe(page, channels);

    await campfire.disconnectUser(1, { reconnect: false });
    for (const page of banned) await until("a banned window closes", async () => !(await look(page)).open);
    await campfire.disconnectUser(2, { reconnect: true });
    await until("the other window closes", async () => (await look(other)).subscriptions.heartbeat.disconnected === 1);
    await confirmed(other, ["heartbeat"], 2, RECOVERY_MS);

    for (const page of banned) {
      const { open, retrying } = await look(page);
      assert.deepEqual({ open, retrying }, { open: false, retrying: false });
    }
    const connects = campfire.callsOf("connect").length;
    assert.equal(connects, 4, "three windows and one that came back");
    assertClean();
  });
}

test("a room switch stops one room and starts the other on the same socket", async () => {
  const page = await enter(1);
  const roomOf = (room_id) => ({ channel: "RoomChannel", room_id });
  await subscribe(page, { first: roomOf(1) });
  await page.evaluate(() => window.campfire.unsubscribe("first"));
  await until("the unsubscribe call", () => campfire.callsOf("command", { command: "unsubscribe" }).length === 1);
  await subscribe(page, { second: roomOf(2) });
  await campfire.broadcast(`room:${roomGid(1)}`, "to the first");
  await campfire.broadcast(`room:${roomGid(2)}`, "to the second");
  assert.equal(await received(page, "second", () => true), "to the second");
  assert.deepEqual((await look(page)).subscriptions.first.received, []);
  assert.equal(campfire.callsOf("connect").length, 1);
  assertClean();
});

test("without a login the client is told and does not come back", async () => {
  const page = await enter(null);
  await page.evaluate(() => window.campfire.consumer.connect());
  await until("the connect call", () => campfire.callsOf("connect").length === 1);
  await until("the client has given up", async () => {
    const { open, retrying } = await look(page);
    return !open && !retrying;
  });
  assert.equal(campfire.callsOf("disconnect").length, 0);
  assertClean();
});

test("the app sees the browser's cookie, address and URL, and nothing else of its headers", async () => {
  const page = await enter(1);
  await subscribe(page, { notifications: CHANNELS.unreadNotifications });
  const { env } = campfire.callsOf("connect")[0].body;
  assert.equal(env.url, `http://127.0.0.1:${ringcable.port}/cable`);
  assert.deepEqual(env.headers, {
    REMOTE_ADDR: "127.0.0.1",
    cookie: `session_token=${encodeURIComponent(sessionCookie(1))}`,
  });
  assert.equal(campfire.callsOf("command")[0].body.connection_identifiers, JSON.stringify({ current_user: userGid(1) }));
  assertClean();
});
