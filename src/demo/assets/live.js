// What the browser sees of the connection: its phase, its pings, its bytes. Contains nothing about chat.
// `watch(adapters)` gives the Action Cable client a counting WebSocket and returns the figures.

const WIRE_ENTRIES_MAX = 9;
export const TRIPS_SHOWN_MAX = 24;
const encoder = new TextEncoder();

export class Live extends EventTarget {
  phase = "connecting"; // connecting, connected, reconnecting, refused
  messages = 0;
  pings = 0;
  bytesIn = 0;
  bytesOut = 0;
  reconnects = 0;
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
    if (this.phase !== "refused") this.#enter(this.#welcomed ? "reconnecting" : "connecting");
  }

  received(text) {
    const bytes = encoder.encode(text).length;
    this.bytesIn += bytes;
    const { type, identifier, reconnect } = parse(text);
    if (type === "ping") {
      this.pings += 1;
      this.pingedAt = performance.now();
      this.dispatchEvent(new Event("ping"));
    } else {
      this.messages += 1;
    }
    if (type === "welcome") {
      if (this.#welcomed) this.reconnects += 1;
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

// Gives the Action Cable client a WebSocket that counts.
export function watch(adapters) {
  const live = new Live();
  adapters.WebSocket = class extends WebSocket {
    constructor(url, protocols) {
      super(url, protocols);
      live.opening();
      this.addEventListener("message", (event) => live.received(event.data));
      this.addEventListener("close", () => live.closed());
    }

    send(text) {
      live.sent(text);
      super.send(text);
    }
  };
  return live;
}

function parse(text) {
  try {
    return JSON.parse(text) ?? {};
  } catch {
    return {};
  }
}
