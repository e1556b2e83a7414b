// A small client of the extended Action Cable protocol. Its session outlives its connection: it comes back with the sid of
// the old one, and asks each subscription's streams for what it has missed. Contains nothing about chat.

const PROTOCOL = "actioncable-v1-ext-json";
const STALE_MS = 6000; // The server sends a ping every three seconds.
const LOOK_MS = 500;
const RETRY_MS = [300, 1000, 2000, 4000];

export class Cable {
  #url;
  #live;
  #socket = null;
  #subscriptions = new Map();
  #sid;
  // By the clock of the server, in seconds: after this time something may have been missed.
  #pingedAt = 0;
  #heardAt = 0;
  #tries = 0;
  #retry;
  #refused = false;

  // `url` gives the address of the cable, `live` is told what the connection does.
  constructor(url, live) {
    this.#url = url;
    this.#live = live;
    setInterval(() => this.#look(), LOOK_MS);
    addEventListener("offline", () => this.#lose());
    addEventListener("online", () => this.#connectNow());
    this.#connect();
  }

  // The callbacks, all optional: `connected({ restored })` when the subscription is there, `received(message, missed)`,
  // `presence(message)`, and `caughtUp()` when the missed messages have come.
  subscribe(params, callbacks) {
    const subscription = new Subscription(this, JSON.stringify(params), callbacks);
    this.#subscriptions.set(subscription.identifier, subscription);
    if (this.#live.phase === "connected") this.send("subscribe", subscription.identifier);
    return subscription;
  }

  unsubscribe(subscription) {
    this.#subscriptions.delete(subscription.identifier);
    this.send("unsubscribe", subscription.identifier);
  }

  // What is sent without a connection is lost: whoever sends has to try again.
  send(command, identifier, rest) {
    if (this.#live.phase !== "connected" || this.#socket?.readyState !== WebSocket.OPEN) return;
    const text = JSON.stringify({ command, identifier, ...rest });
    this.#live.sent(text);
    this.#socket.send(text);
  }

  // As if the network were gone, until `goOnline`.
  goOffline() {
    this.#live.offline = true;
    this.#lose();
  }

  goOnline() {
    this.#live.offline = false;
    this.#connectNow();
  }

  // ---- the connection ----

  #connect() {
    clearTimeout(this.#retry);
    this.#heardAt = performance.now();
    this.#live.opening();
    const url = new URL(this.#url(), location.href);
    url.protocol = url.protocol.replace("http", "ws");
    if (this.#sid) url.searchParams.set("sid", this.#sid);
    const socket = new WebSocket(url, [PROTOCOL]);
    this.#socket = socket;
    // Events of a socket that was given up are ignored.
    socket.onmessage = ({ data }) => socket === this.#socket && this.#hear(data);
    socket.onclose = () => socket === this.#socket && this.#lose();
  }

  #connectNow() {
    if (this.#socket || this.#refused || this.#live.offline) return;
    this.#tries = 0;
    this.#connect();
  }

  #lose() {
    this.#socket?.close();
    this.#socket = null;
    this.#live.closed();
    clearTimeout(this.#retry);
    if (this.#refused || this.#live.offline) return;
    const wait = RETRY_MS[Math.min(this.#tries, RETRY_MS.length - 1)];
    this.#tries += 1;
    this.#retry = setTimeout(() => this.#connect(), wait * (0.75 + Math.random() / 2));
  }

  // A dead connection may give no close event.
  #look() {
    if (this.#socket && performance.now() - this.#heardAt > STALE_MS) this.#lose();
  }

  // ---- what comes ----

  #hear(text) {
    this.#heardAt = performance.now();
    const message = JSON.parse(text);
    if (message.type === "disconnect") this.#refused = message.reconnect === false;
    this.#live.received(text);
    if (message.type === "ping") this.#pingedAt = message.message;
    else if (message.type === "welcome") this.#welcome(message);
    else this.#subscriptions.get(message.identifier)?.hear(message, this.#pingedAt);
  }

  #welcome({ sid, restored = false, restored_ids: restoredIds = [] }) {
    this.#sid = sid;
    this.#tries = 0;
    // Until the first ping tells the time of the server, the clock of this machine has to do.
    this.#pingedAt ||= Math.floor(Date.now() / 1000);
    for (const [identifier, subscription] of this.#subscriptions) {
      if (restored && restoredIds.includes(identifier)) subscription.restored(this.#pingedAt);
      else this.send("subscribe", identifier);
    }
    // The page has left these while the connection was gone.
    for (const identifier of restoredIds) if (!this.#subscriptions.has(identifier)) this.send("unsubscribe", identifier);
  }
}

class Subscription {
  #cable;
  #callbacks;
  // The position of the last message of each stream.
  #positions = new Map();
  // Messages that come now were sent while the connection was gone.
  #catchesUp = false;

  constructor(cable, identifier, callbacks) {
    this.#cable = cable;
    this.identifier = identifier;
    this.#callbacks = callbacks;
  }

  perform(action, data = {}) {
    this.#send("message", { data: JSON.stringify({ ...data, action }) });
  }

  join(id, info) {
    this.#send("join", { presence: { id, info } });
  }

  askWhoIsHere() {
    this.#send("presence");
  }

  unsubscribe() {
    this.#cable.unsubscribe(this);
  }

  // The server has the subscription still. It asks for what came after the last message of each stream, and since the last
  // ping on the other streams.
  restored(since) {
    this.#catchesUp = true;
    this.#send("history", { history: { since, streams: Object.fromEntries(this.#positions) } });
    this.#callbacks.connected?.({ restored: true });
  }

  hear({ type, message, stream_id: stream, epoch, offset }) {
    if (stream !== undefined) this.#positions.set(stream, { epoch, offset });
    if (type === "confirm_subscription") {
      this.#catchesUp = false;
      this.#callbacks.connected?.({ restored: false });
    } else if (type === "confirm_history") {
      this.#catchesUp = false;
      this.#callbacks.caughtUp?.();
    } else if (type === "reject_history") {
      this.#startAnew();
    } else if (type === "presence") {
      this.#callbacks.presence?.(message);
    } else if (type === undefined && message !== undefined) {
      this.#callbacks.received?.(message, this.#catchesUp && stream !== undefined);
    }
  }

  // What was missed is not kept any more. The answer of the app to a new subscription has everything.
  #startAnew() {
    this.#catchesUp = false;
    this.#positions.clear();
    this.#send("unsubscribe");
    this.#send("subscribe");
  }

  #send(command, rest) {
    this.#cable.send(command, this.identifier, rest);
  }
}
