// An Action Cable client on the `ws` package: independent of the browser library and of ringcable.

import WebSocket from "ws";

const LIMIT_MS = 10_000;

export class CableClient {
  #frames = [];
  #waiting = [];
  #forgetful = false;

  /** Connects with the sub-protocols of the browser client and waits for the welcome, which stays readable. */
  static async open(url, headers) {
    const client = new CableClient();
    client.socket = new WebSocket(url, ["actioncable-v1-json", "actioncable-unsupported"], { headers });
    client.closed = new Promise((resolve) => {
      client.socket.once("close", (code, reason) => resolve({ code, reason: reason.toString(), at: Date.now() }));
    });
    client.socket.on("message", (data) => client.#take(JSON.parse(data)));
    client.socket.once("upgrade", ({ headers: received }) => { client.upgradeHeaders = received; });
    await new Promise((resolve, reject) => {
      client.socket.once("open", resolve);
      client.socket.once("error", reject);
    });
    // From here on trouble shows as a close.
    client.socket.on("error", () => {});
    const welcome = await client.next(({ type }) => type === "welcome");
    client.#frames.unshift(welcome);
    return client;
  }

  get protocol() {
    return this.socket.protocol;
  }

  send(message) {
    this.socket.send(JSON.stringify(message));
  }

  async subscribe(identifier) {
    this.send({ command: "subscribe", identifier });
    return this.next((frame) => frame.identifier === identifier && frame.type === "confirm_subscription");
  }

  /** Takes the first frame that `matches`, arrived or to come. */
  next(matches, limitMs = LIMIT_MS) {
    const at = this.#frames.findIndex(matches);
    if (at >= 0) return Promise.resolve(this.#frames.splice(at, 1)[0]);
    return new Promise((resolve, reject) => {
      const waiter = { matches, resolve: (frame) => { clearTimeout(late); resolve(frame); } };
      const late = setTimeout(() => {
        this.#waiting.splice(this.#waiting.indexOf(waiter), 1);
        reject(new Error(`no such frame within ${limitMs} ms`));
      }, limitMs);
      this.#waiting.push(waiter);
    });
  }

  /** From here on frames that nobody waits for are thrown away: for clients of a long load. */
  forget() {
    this.#frames = [];
    this.#forgetful = true;
  }

  close(code) {
    this.socket.close(code);
    return this.closed;
  }

  terminate() {
    this.socket.terminate();
  }

  #take(frame) {
    const at = this.#waiting.findIndex(({ matches }) => matches(frame));
    if (at >= 0) this.#waiting.splice(at, 1)[0].resolve(frame);
    else if (!this.#forgetful) this.#frames.push(frame);
  }
}

/** A GET without an upgrade. */
export const plainRequest = (port, path) => fetch(`http://127.0.0.1:${port}${path}`);
