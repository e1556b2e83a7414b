// Waiting for something that can be observed, with a deadline.

const STEP_MS = 25;

/** Resolves with the first truthy value of `probe`; rejects with `what` after `limitMs`. */
export async function until(what, probe, limitMs = 10_000) {
  const deadline = Date.now() + limitMs;
  for (;;) {
    const value = await probe();
    if (value) return value;
    if (Date.now() > deadline) throw new Error(`waited ${limitMs} ms in vain for: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, STEP_MS));
  }
}
