// A small Action Cable client: one connection, one subscription; it retries for ever.
// `phase` is called with "connecting", "live" or "lost", `message` with each message of the subscription.

const STALE_MS = 7_000; // Snapshots come every second.
const RETRY_MS = [500, 1_000, 2_000, 4_000, 8_000];

export class Cable {
  #url;
  #identifier;
  #listener;
  #socket;
  #heardAt = 0;
  #tries = 0;
  #retry;

  constructor(url, identifier, listener) {
    this.#url = url;
    this.#identifier = identifier;
    this.#listener = listener;
    this.#connect();
    setInterval(() => this.#look(), 1_000);
    addEventListener("online", () => this.#retryNow());
  }

  #connect() {
    clearTimeout(this.#retry);
    this.#heardAt = Date.now();
    const socket = new WebSocket(this.#url, ["actioncable-v1-json"]);
    this.#socket = socket;
    // Events of a socket that was replaced are ignored.
    socket.onmessage = ({ data }) => socket === this.#socket && this.#heard(JSON.parse(data));
    socket.onclose = () => socket === this.#socket && this.#lost();
  }

  #heard({ type, message }) {
    this.#heardAt = Date.now();
    if (type === "welcome") this.#socket.send(JSON.stringify({ command: "subscribe", identifier: this.#identifier }));
    if (type === "confirm_subscription") {
      this.#tries = 0;
      this.#listener.phase("live");
    }
    if (type === undefined && message !== undefined) this.#listener.message(message);
  }

  // A dead connection may give no close event, so the time of the last message is checked.
  #look() {
    if (this.#socket && Date.now() - this.#heardAt > STALE_MS) {
      this.#socket.close();
      this.#lost();
    }
  }

  #lost() {
    this.#socket = null;
    this.#listener.phase("lost");
    const wait = RETRY_MS[Math.min(this.#tries, RETRY_MS.length - 1)];
    this.#tries += 1;
    this.#retry = setTimeout(() => this.#connect(), wait * (0.75 + Math.random() / 2));
  }

  #retryNow() {
    if (!this.#socket) this.#connect();
  }
}
