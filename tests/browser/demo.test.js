// `ringcable --demo` in a real browser: two windows chat. With SCREENSHOT=<file> it also takes the picture of the README.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { launch, openWindow } from "./support/chromium.js";
import { Ringcable, freePort } from "./support/server.js";

const RECOVERY_MS = 45_000;

let browser;
let ringcable;
let base;
const errors = [];

before(async () => {
  const port = await freePort();
  ringcable = await Ringcable.start({ port, args: ["--demo", `--port=${port}`, "--host=127.0.0.1"] });
  base = `http://127.0.0.1:${port}`;
  browser = await launch();
});
after(async () => {
  await browser?.close();
  await ringcable?.stop();
});

async function enter(name, options) {
  const page = await openWindow(browser, `${base}/?name=${name}`, { errors, ...options });
  await page.waitForSelector(".message");
  await page.waitForFunction(() => document.body.dataset.phase === "connected");
  return page;
}

async function write(page, text) {
  await page.fill("#composer-text", text);
  await page.press("#composer-text", "Enter");
  await said(page, text);
}

const said = (page, text) => page.waitForSelector(`.message:not(.underway) .bubble:text-is(${JSON.stringify(text)})`);
const badge = (page, room) => page.locator(".room-link", { hasText: room }).locator(".badge");
const people = (page) => page.locator("#people li > span:nth-child(2)").allTextContents();

async function seesPeople(page, ...names) {
  await page.waitForFunction((wanted) => {
    const shown = [...document.querySelectorAll("#people li > span:nth-child(2)")].map((node) => node.textContent);
    return JSON.stringify(shown) === wanted;
  }, JSON.stringify(names));
  assert.deepEqual(await people(page), names);
}

test("a visitor without a name is asked for one", async () => {
  const page = await openWindow(browser, base, { errors });
  await page.fill("#join-name", "Radia");
  await page.click("text=Join the chat");
  await page.waitForSelector(".message");
  assert.equal(await page.textContent("#my-name"), "Radia");
  await page.context().close();
});

test("two windows chat, see each other, see who types and what is unread", async () => {
  const ada = await enter("Ada", { colorScheme: "light" });
  const grace = await enter("Grace", { colorScheme: "dark" });
  await seesPeople(ada, "Ada", "Grace");
  await seesPeople(grace, "Ada", "Grace");

  await write(ada, "Good morning! Anyone in?");
  await said(grace, "Good morning! Anyone in?");
  await write(grace, "Morning. I can see you from the other window.");
  await write(grace, "Same process, same room, one frame each.");
  await said(ada, "Same process, same room, one frame each.");
  assert.match(await ada.textContent("#round-trip"), /^[\d.]+ ms$/);

  await grace.click(".room-link:has-text('Engine room')");
  await seesPeople(ada, "Ada");
  await write(grace, "@Ada fifteen thousand idle connections and the CPU is asleep.");
  await badge(ada, "Engine room").waitFor();
  assert.equal(await badge(ada, "Engine room").textContent(), "@ 1");
  assert.match(await ada.title(), /^\(1\) /);
  await grace.click(".room-link:has-text('Campfire')");
  await seesPeople(ada, "Ada", "Grace");

  await write(ada, "And that took the whole way: RPC, broadcast, fan-out.");
  await grace.locator("#composer-text").pressSequentially("I see", { delay: 40 });
  await ada.waitForSelector("#typing :text('Grace is typing')");
  for (const page of [ada, grace]) {
    await page.waitForFunction(() => Number(document.getElementById("count-pings").textContent) > 1);
  }
  if (process.env.SCREENSHOT) await takePictures(ada, grace, process.env.SCREENSHOT);

  // The badge goes away in every window of the user that reads.
  const adaAgain = await enter("Ada");
  await badge(adaAgain, "Engine room").waitFor();
  await adaAgain.click(".room-link:has-text('Engine room')");
  await badge(ada, "Engine room").waitFor({ state: "detached" });
  await adaAgain.context().close();

  await grace.context().close();
  await seesPeople(ada, "Ada");
  await ada.context().close();
});

/** Both windows at a moment when there is something to see: Ada's in the light scheme, Grace's in the dark one. */
async function takePictures(ada, grace, path) {
  await ada.locator("#composer-text").pressSequentially("Nice", { delay: 40 });
  await grace.locator("#composer-text").pressSequentially("!", { delay: 40 });
  await ada.waitForSelector("#typing :text('Grace is typing')");
  await grace.waitForSelector("#typing :text('Ada is typing')");
  await grace.screenshot({ path: path.replace(/\.png$/, "-dark.png") });
  await ada.screenshot({ path });
}

test("names and messages are text, not markup", async () => {
  const page = await enter(encodeURIComponent("<i>Eve</i>"));
  await write(page, "<img src=x onerror=alert(1)> & </li>");
  assert.equal(await page.locator("#messages img, #people i").count(), 0);
  await page.context().close();
});

test("what is written while the server restarts arrives after it", async () => {
  const page = await enter("Ada");
  const { port } = ringcable;
  assert.deepEqual(await ringcable.stop(), { code: 0, signal: null });
  await page.waitForFunction(() => document.body.dataset.phase === "reconnecting");
  await page.fill("#composer-text", "Still there?");
  await page.press("#composer-text", "Enter");
  await page.waitForSelector(".message.underway");

  ringcable = await Ringcable.start({ port, args: ["--demo", `--port=${port}`, "--host=127.0.0.1"] });
  await page.waitForFunction(() => document.body.dataset.phase === "connected", null, { timeout: RECOVERY_MS });
  await said(page, "Still there?");
  assert.equal(await page.locator(".bubble:text-is('Still there?')").count(), 1);
  assert.equal(await page.textContent("#count-reconnects"), "1");
  await page.context().close();
});

test("no script error happened in any window", () => assert.deepEqual(errors, []));
