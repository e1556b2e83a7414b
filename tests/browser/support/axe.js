// What axe-core says about a page as it is at the moment.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";

const AXE = await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

export async function assertAccessible(page, what) {
  // Evaluated, not added as a script element: the page's policy forbids those.
  await page.evaluate(AXE);
  const { violations, passes } = await page.evaluate(() => axe.run(document, { resultTypes: ["violations"] }));
  const shown = violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html, any }) => `${html} (${any.map(({ message }) => message)})`).join("; ")}`);
  assert.deepEqual(shown, [], what);
  assert.ok(passes.length > 5, `${what}: axe has looked at something`);
}
