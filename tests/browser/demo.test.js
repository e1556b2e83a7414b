// `ringcable --demo` in a real browser: two windows chat. With SCREENSHOT=<file> it also takes the picture of the README.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { assertAccessible } from "./support/axe.js";
import { launch, openWindow } from "./support/chromium.js";
import { Ringcable, freePort } from "./support/server.js";

const RECOVERY_MS = 45_000;
const flags = (port, ...more) => ["--demo", `--port=${port}`, "--host=127.0.0.1", "--cores=2", ...more];

let browser;
let ringcable;
let base;
const errors = [];

before(async () => {
  const port = await freePort();
  ringcable = await Ringcable.start({ port, args: flags(port) });
  base = `http://127.0.0.1:${port}`;
  browser = await launch();
});
after(async () => {
  await browser?.close();
  await ringcable?.stop();
});

async function enter(name, { at = base, ...options } = {}) {
  const page = await openWindow(browser, `${at}/?name=${name}`, { errors, ...options });
  await page.waitForSelector(".message");
  await inPhase(page, "connected");
  return page;
}

const inPhase = (page, phase) => page.waitForFunction((wanted) => document.body.dataset.phase === wanted, phase);
const counted = (page, id, value) => page.waitForFunction(([of, wanted]) => document.getElementById(of).textContent === wanted, [id, value]);
/** The messages below the line that says how many were missed, and that line. */
const missed = (page) => page.evaluate(() => {
  const line = document.querySelector(".away");
  const rows = [...document.querySelectorAll("#messages > li")];
  return [line?.textContent, ...rows.slice(rows.indexOf(line) + 1).map((row) => row.querySelector(".bubble").textContent)];
});

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

test("whoever changes the name can leave it as it was", async () => {
  const page = await enter("Ada");
  const changing = () => page.locator("#join[open]");

  await page.click("#change-name");
  assert.equal(await page.textContent("#join-submit"), "Save");
  await page.keyboard.press("Escape");
  await changing().waitFor({ state: "detached" });
  await page.click("#change-name");
  await page.click("text=Cancel");
  await changing().waitFor({ state: "detached" });
  // The same name is no new one: what has been written stays.
  await page.fill("#composer-text", "half a sentence");
  await page.click("#change-name");
  await page.click("text=Save");
  await changing().waitFor({ state: "detached" });
  assert.equal(await page.inputValue("#composer-text"), "half a sentence");
  assert.equal(await page.textContent("#my-name"), "Ada");

  await page.click("#change-name");
  await page.fill("#join-name", "Grace");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.getElementById("my-name").textContent === "Grace");
  await page.context().close();
});

test("a first visitor cannot leave without a name", async () => {
  const page = await openWindow(browser, base, { errors });
  await page.waitForSelector("#join[open]");
  assert.equal(await page.locator("#join-cancel:visible").count(), 0);
  // A browser lets the second one close any dialog: it opens again a moment later.
  await page.keyboard.press("Escape");
  await page.keyboard.press("Escape");
  await page.waitForSelector("#join[open]");
  await page.fill("#join-name", "Radia");
  await page.click("text=Join the chat");
  await page.waitForSelector(".message");
  assert.equal(await page.textContent("#my-name"), "Radia");
  await page.context().close();
});

/** With SHOTS=<folder>: how the page looks, with and without the panel, in both schemes. For the eye. */
async function takeShots(page, name) {
  if (!process.env.SHOTS) return;
  for (const colorScheme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme });
    await page.screenshot({ path: `${process.env.SHOTS}/${name}-${colorScheme}.png` });
    await page.click("#toggle-live");
    await page.screenshot({ path: `${process.env.SHOTS}/${name}-${colorScheme}-live.png` });
    await page.click("#toggle-live");
  }
}

const PHONES = [[390, 844], [320, 568], [768, 1024], [844, 390]];

/** What a finger meets in the middle of an element: itself, or the id of what lies over it. */
const meets = (page, selector) => page.evaluate((wanted) => {
  const node = document.querySelector(wanted);
  const { x, y, width, height } = node.getBoundingClientRect();
  const met = document.elementFromPoint(x + width / 2, y + height / 2);
  return node.contains(met) || `${met?.tagName} ${met?.id} ${met?.className}`;
}, selector);
const panelIsOpen = (page) => page.locator("#live").isVisible();

for (const [width, height] of PHONES) {
  test(`the live panel opens and closes at ${width}x${height}`, async () => {
    const page = await enter("Ada", { viewport: { width, height }, hasTouch: true });
    const button = page.locator("#toggle-live");
    const open = async () => {
      await button.tap();
      assert.equal(await panelIsOpen(page), true);
      assert.equal(await button.getAttribute("aria-expanded"), "true");
    };
    const assertClosed = async (how) => {
      assert.equal(await panelIsOpen(page), false, how);
      assert.equal(await button.getAttribute("aria-expanded"), "false", how);
    };
    assert.equal(await panelIsOpen(page), false);

    await open();
    assert.equal(await page.locator("#shade").isVisible(), true);
    const panel = await page.locator("#live").boundingBox();
    const { y, height: tall } = await button.boundingBox();
    assert.ok(panel.y >= y + tall, `the panel starts at ${panel.y}, the button ends at ${y + tall}`);
    assert.ok(panel.height > 60 && panel.y + panel.height <= height && panel.x >= 0 && panel.x + panel.width <= width, JSON.stringify(panel));
    for (const selector of ["#toggle-live", "#composer-text", ".send"]) assert.equal(await meets(page, selector), true, selector);

    await button.tap();
    await assertClosed("by the button");
    await open();
    await page.keyboard.press("Escape");
    await assertClosed("by Esc");
    assert.equal(await page.evaluate(() => document.activeElement.id), "toggle-live");
    await open();
    await page.touchscreen.tap(panel.x - 20, panel.y + panel.height / 2);
    await assertClosed("by a tap beside it");
    await open();
    await page.tap("#live .connection strong");
    assert.equal(await panelIsOpen(page), true, "a tap into it");
    await page.tap("#composer-text");
    await assertClosed("by a tap on the composer");
    assert.equal(await page.evaluate(() => document.activeElement.id), "composer-text");
    await takeShots(page, `demo-${width}x${height}`);
    await page.context().close();
  });
}

test("beside the chat the live panel stays open when the chat is clicked", async () => {
  const page = await enter("Ada", { viewport: { width: 1000, height: 700 } });
  await page.click("#toggle-live");
  await page.click("#composer-text");
  assert.equal(await panelIsOpen(page), true);
  assert.equal(await page.locator("#shade").isVisible(), false);
  await page.keyboard.press("Escape");
  assert.equal(await panelIsOpen(page), false);
  await page.context().close();
});

test("every room can be scrolled to and read on a phone", async () => {
  const page = await enter("Ada", { viewport: { width: 390, height: 844 }, hasTouch: true });
  await page.tap(".room-link >> nth=-1");
  // Not under the fade at the right edge, which is 28 px wide.
  await page.waitForFunction(() => {
    const list = document.querySelector(".rooms").getBoundingClientRect();
    const name = document.querySelector(".room-link[aria-current] .room-link-name");
    return name.getBoundingClientRect().right <= list.right - 28 && name.scrollWidth <= name.clientWidth;
  });
  await page.context().close();
});

for (const colorScheme of ["light", "dark"]) {
  test(`axe-core finds nothing in the ${colorScheme} scheme`, async () => {
    const page = await enter("Ada", { colorScheme });
    await assertAccessible(page, `the chat, ${colorScheme}`);
    if (process.env.SHOTS) await page.screenshot({ path: `${process.env.SHOTS}/demo-1280-${colorScheme}.png` });
    await page.setViewportSize({ width: 390, height: 844 });
    await page.click("#toggle-live");
    await assertAccessible(page, `the live panel on a phone, ${colorScheme}`);
    await page.keyboard.press("Escape");
    await page.setViewportSize({ width: 1280, height: 800 });
    await page.click("#change-name");
    await assertAccessible(page, `the dialog, ${colorScheme}`);
    if (process.env.SHOTS) await page.screenshot({ path: `${process.env.SHOTS}/demo-change-name-${colorScheme}.png` });
    await page.context().close();
  });
}

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

test("a window that was offline gets what it missed, marked as such", async () => {
  const ada = await enter("Ada", { colorScheme: "light" });
  const grace = await enter("Grace", { colorScheme: "dark" });
  await seesPeople(grace, "Ada", "Grace");
  await write(ada, "Good morning! I may lose the network in a moment.");
  await write(grace, "Then you will find here what you have missed.");
  await said(ada, "Then you will find here what you have missed.");

  await ada.focus("#network");
  await ada.keyboard.press("Enter");
  await inPhase(ada, "offline");
  assert.match(await ada.textContent("#banner-text"), /^This window is offline/);
  assert.equal(await ada.textContent("#network"), "Go online");
  await assertAccessible(ada, "the chat, offline");
  const texts = ["Are you gone already?", "I write anyway.", "The server keeps it for you."];
  for (const text of texts) await write(grace, text);
  await grace.click(".room-link:has-text('Random')");
  await write(grace, "Elsewhere");
  await ada.fill("#composer-text", "This waited until I was back.");
  await ada.press("#composer-text", "Enter");
  await ada.waitForSelector(".message.underway");
  assert.equal(await ada.locator(`.bubble:text-is("${texts[2]}")`).count(), 0);
  if (process.env.SHOTS) await ada.screenshot({ path: `${process.env.SHOTS}/demo-offline.png` });

  await ada.click("#banner-online");
  await inPhase(ada, "connected");
  await said(ada, "This waited until I was back.");
  assert.deepEqual(await missed(ada), ["3 messages while you were offline", ...texts, "This waited until I was back."]);
  await counted(ada, "count-resumed", "1");
  await counted(ada, "count-caught-up", "3");
  assert.equal(await ada.textContent("#count-subscriptions"), "10");
  await badge(ada, "Random").waitFor();
  assert.equal(await ada.evaluate(() => document.activeElement.id), "composer-text");
  await assertAccessible(ada, "the chat, back");
  if (process.env.SHOTS) {
    await ada.screenshot({ path: `${process.env.SHOTS}/demo-back.png` });
    await ada.setViewportSize({ width: 390, height: 844 });
    await ada.screenshot({ path: `${process.env.SHOTS}/demo-back-phone.png` });
    await ada.click("#toggle-live");
    await ada.click("#network");
    await ada.screenshot({ path: `${process.env.SHOTS}/demo-offline-phone.png` });
    await ada.click("#network");
    await inPhase(ada, "connected");
  }
  if (process.env.SCREENSHOT) await takePictures(ada, grace, process.env.SCREENSHOT);
  await grace.context().close();
  await ada.context().close();
});

test("a window whose network is cut comes back by itself, and nobody sees it leave", async () => {
  const ada = await enter("Ada");
  const grace = await enter("Grace");
  await seesPeople(grace, "Ada", "Grace");
  await grace.evaluate(() => {
    window.lists = [];
    new MutationObserver(() => window.lists.push(document.querySelectorAll("#people li").length)).observe(document.getElementById("people"), { childList: true });
  });
  await ada.context().setOffline(true);
  await inPhase(ada, "reconnecting");
  for (const text of ["Are you there?", "Ada?"]) await write(grace, text);
  await ada.context().setOffline(false);
  await inPhase(ada, "connected");
  await said(ada, "Ada?");
  assert.deepEqual(await missed(ada), ["2 messages while you were offline", "Are you there?", "Ada?"]);
  await counted(ada, "count-resumed", "1");
  await write(ada, "I am back");
  await said(grace, "I am back");
  await seesPeople(ada, "Ada", "Grace");
  assert.deepEqual(await grace.evaluate(() => window.lists.filter((length) => length !== 2)), []);
  await grace.context().close();
  await ada.context().close();
});

test("who is away for long leaves, and what is not kept any more comes from the app", async () => {
  const port = await freePort();
  const server = await Ringcable.start({ port, args: flags(port, "--history_limit=2", "--presence_ttl=1") });
  try {
    const at = `http://127.0.0.1:${port}`;
    const ada = await enter("Ada", { at });
    const grace = await enter("Grace", { at });
    await seesPeople(grace, "Ada", "Grace");
    // The first time without the position of any message of the room, then with one that is not kept any more.
    const absences = [["One", "Two", "Three", "Four"], ["Five", "Six", "Seven"]];
    for (const [number, texts] of absences.entries()) {
      await ada.click("#network");
      await seesPeople(grace, "Grace");
      for (const text of texts) await write(grace, text);
      await ada.click("#network");
      await said(ada, texts.at(-1));
      assert.deepEqual(await missed(ada), [`${texts.length} messages while you were offline`, ...texts]);
      await counted(ada, "count-resumed", String(number + 1));
      await seesPeople(grace, "Ada", "Grace");
    }
    await seesPeople(ada, "Ada", "Grace");
    await write(grace, "Eight");
    await said(ada, "Eight");
    await grace.context().close();
    await ada.context().close();
  } finally {
    await server.stop();
  }
});

/** Both windows at a moment when there is something to see: Ada's in the light scheme, Grace's in the dark one. */
async function takePictures(ada, grace, path) {
  await ada.setViewportSize({ width: 1280, height: 800 });
  await grace.click(".room-link:has-text('Campfire')");
  await seesPeople(ada, "Ada", "Grace");
  for (const page of [ada, grace]) await page.waitForFunction(() => Number(document.getElementById("count-pings").textContent) > 0);
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
  await page.waitForFunction(() => document.getElementById("count-pings").textContent !== "0");
  assert.deepEqual(await ringcable.stop(), { code: 0, signal: null });
  await page.waitForFunction(() => document.body.dataset.phase === "reconnecting");
  await page.fill("#composer-text", "Still there?");
  await page.press("#composer-text", "Enter");
  await page.waitForSelector(".message.underway");
  // What is known is from before, and looks like it.
  await page.waitForFunction(() => /^last ping [\d.]+ s ago$/.test(document.getElementById("ping-age").textContent));
  const dot = () => page.evaluate(() => getComputedStyle(document.querySelector("#people .avatar"), "::after").backgroundColor);
  const away = await dot();
  await page.setViewportSize({ width: 390, height: 844 });
  await page.click("#toggle-live");
  assert.equal(await page.locator("#banner").isVisible(), true);
  assert.equal(await meets(page, "#banner"), true);
  if (process.env.SHOTS) await page.screenshot({ path: `${process.env.SHOTS}/demo-phone-down.png` });
  await page.keyboard.press("Escape");
  await page.setViewportSize({ width: 1280, height: 800 });
  if (process.env.SHOTS) await page.screenshot({ path: `${process.env.SHOTS}/demo-down.png` });

  ringcable = await Ringcable.start({ port, args: flags(port) });
  await page.waitForFunction(() => document.body.dataset.phase === "connected", null, { timeout: RECOVERY_MS });
  await said(page, "Still there?");
  assert.equal(await page.locator(".bubble:text-is('Still there?')").count(), 1);
  assert.equal(await page.textContent("#count-reconnects"), "1");
  assert.notEqual(await dot(), away);
  await page.context().close();
});

test("no script error happened in any window", () => assert.deepEqual(errors, []));
