// The network between browser and server: a TCP proxy that can be cut in the ways in which networks are.

import { connect, createServer } from "node:net";

export class Line {
  /** Connections that came, also while the line was cut. */
  opened = 0;
  #pairs = new Set();
  #state = "up";

  static async to(port) {
    const line = new Line();
    line.server = createServer({ allowHalfOpen: true }, (near) => line.#open(near, port));
    await new Promise((resolve) => line.server.listen(0, "127.0.0.1", resolve));
    line.port = line.server.address().port;
    return line;
  }

  /** Both ends see a reset, and new connections are reset too. */
  reset() {
    this.#state = "reset";
    for (const pair of this.#pairs) for (const socket of pair) socket.resetAndDestroy();
  }

  /** Both ends see an end. New connections work. */
  end() {
    for (const pair of this.#pairs) for (const socket of pair) socket.end();
  }

  /** Nothing arrives any more, and nobody is told. */
  silence() {
    this.#state = "silent";
    for (const pair of this.#pairs) for (const socket of pair) socket.pause();
  }

  /** New connections work again. Those that were silent stay so: what was under way is lost. */
  restore() {
    this.#state = "up";
  }

  async stop() {
    this.reset();
    await new Promise((resolve) => this.server.close(resolve));
  }

  #open(near, port) {
    this.opened += 1;
    if (this.#state === "reset") {
      near.resetAndDestroy();
      return;
    }
    const far = connect({ port, host: "127.0.0.1", allowHalfOpen: true });
    const pair = [near, far];
    this.#pairs.add(pair);
    for (const [from, to] of [[near, far], [far, near]]) {
      from.setNoDelay(true);
      from.on("error", () => to.destroy());
      from.on("close", () => {
        this.#pairs.delete(pair);
        to.destroy();
      });
      from.on("data", (bytes) => to.write(bytes));
      from.on("end", () => to.end());
      if (this.#state === "silent") from.pause();
    }
  }
}
