// Headless Chromium, as Debian packages it.

import { chromium } from "playwright-core";

const EXECUTABLE = process.env.CHROMIUM_BIN ?? "/usr/bin/chromium";
const FLAGS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

export const launch = () => chromium.launch({ executablePath: EXECUTABLE, headless: true, args: FLAGS });

/** A window of its own: own cookies, own storage. Whatever goes wrong in its scripts fails the test through `errors`. */
export async function openWindow(browser, url, { cookies = [], errors, ...options } = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, locale: "en-GB", ...options });
  await context.addCookies(cookies);
  const page = await context.newPage();
  page.on("pageerror", (error) => errors?.push(`${url}: ${error.message}`));
  await page.goto(url);
  return page;
}
