// What the browser sees of the connection: its phase, its pings, its bytes. Contains nothing about chat. `cable.js` tells it
// what happens.

const WIRE_ENTRIES_MAX = 9;
export const TRIPS_SHOWN_MAX = 24;
const encoder = new TextEncoder();

export class Live extends EventTarget {
  phase = "connecting"; // connecting, connected, reconnecting, offline, refused
  // The page itself has closed the connection.
  offline = false;
  messages = 0;
  pings = 0;
  bytesIn = 0;
  bytesOut = 0;
  reconnects = 0;
  resumed = 0;
  caughtUp = 0;
  pingedAt = null;
  subscriptions = new Set();
  trips = [];
  wire = [];
  #welcomed = false;

  opening() {
    this.#enter(this.#welcomed ? "reconnecting" : "connecting");
  }

  closed() {
    this.subscriptions.clear();
    if (this.offline) this.#enter("offline");
    else if (this.phase !== "refused") this.#enter(this.#welcomed ? "reconnecting" : "connecting");
  }

  // A message that was sent while this window was away.
  missed() {
    this.caughtUp += 1;
    this.#changed();
  }

  received(text) {
    const bytes = encoder.encode(text).length;
    this.bytesIn += bytes;
    const { type, identifier, reconnect, restored, restored_ids: restoredIds = [] } = parse(text);
    if (type === "ping") {
      this.pings += 1;
      this.pingedAt = performance.now();
      this.dispatchEvent(new Event("ping"));
    } else {
      this.messages += 1;
    }
    if (type === "welcome") {
      if (this.#welcomed) this.reconnects += 1;
      if (restored) this.resumed += 1;
      for (const restoredId of restoredIds) this.subscriptions.add(restoredId);
      this.#welcomed = true;
      this.#enter("connected");
    }
    if (type === "confirm_subscription") this.subscriptions.add(identifier);
    if (type === "disconnect" && reconnect === false) this.#enter("refused");
    this.#note("in", type ?? "message", identifier, bytes);
  }

  sent(text) {
    const bytes = encoder.encode(text).length;
    this.bytesOut += bytes;
    const { command, identifier, data } = parse(text);
    if (command === "unsubscribe") this.subscriptions.delete(identifier);
    this.#note("out", command === "message" ? parse(data).action : command, identifier, bytes);
  }

  tripTook(milliseconds) {
    this.trips = [...this.trips, milliseconds].slice(-TRIPS_SHOWN_MAX);
    this.#changed();
  }

  #enter(phase) {
    if (phase === this.phase) return;
    this.phase = phase;
    this.dispatchEvent(new Event("phase"));
    this.#changed();
  }

  #note(direction, what, identifier, bytes) {
    const channel = identifier ? parse(identifier).channel : "";
    this.wire = [{ direction, what, channel, bytes }, ...this.wire].slice(0, WIRE_ENTRIES_MAX);
    this.#changed();
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }
}

function parse(text) {
  try {
    return JSON.parse(text) ?? {};
  } catch {
    return {};
  }
}
