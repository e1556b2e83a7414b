// Starts and stops the real ringcable binary.

import { spawn } from "node:child_process";
import { createHmac } from "node:crypto";
import { existsSync } from "node:fs";
import { createServer } from "node:net";
import { fileURLToPath } from "node:url";
import { until } from "./until.js";

const READY_MS = 10_000;
const STOP_MS = 20_000;
export const SECRET = "browser-test-secret";

/** The binary under test: RINGCABLE_BIN, else the release build, else the debug build. */
function binary() {
  const built = (profile) => fileURLToPath(new URL(`../../../target/${profile}/ringcable`, import.meta.url));
  const found = [process.env.RINGCABLE_BIN, built("release"), built("debug")].find((path) => path && existsSync(path));
  if (!found) throw new Error("no ringcable binary: run `cargo build --release` or set RINGCABLE_BIN");
  return found;
}

/** A port that was free a moment ago. Restarting on the same port needs a number that is known beforehand. */
export async function freePort() {
  const probe = createServer();
  await new Promise((resolve) => probe.listen(0, "127.0.0.1", resolve));
  const { port } = probe.address();
  await new Promise((resolve) => probe.close(resolve));
  return port;
}

/** The key that anycable-go and the Ruby gem derive from the shared secret. */
export const derivedKey = (purpose) => createHmac("sha256", SECRET).update(purpose).digest("hex");

export class Ringcable {
  /** With exactly the variables of a Campfire deployment, `overrides` on top; `args` as flags. RINGCABLE_DRIVER picks one. */
  static async start({ port, rpcUrl, overrides = {}, args = [] }) {
    const campfire = rpcUrl && {
      ANYCABLE_HOST: "127.0.0.1",
      ANYCABLE_PORT: String(port),
      ANYCABLE_RPC_HOST: rpcUrl,
      ANYCABLE_BROADCAST_ADAPTER: "http",
      ANYCABLE_HTTP_BROADCAST_PORT: String(port),
      ANYCABLE_SECRET: SECRET,
    };
    const server = new Ringcable();
    server.port = port;
    server.log = "";
    const driver = process.env.RINGCABLE_DRIVER ? [`--driver=${process.env.RINGCABLE_DRIVER}`] : [];
    server.process = spawn(binary(), [...driver, ...args], {
      env: { PATH: process.env.PATH, ...campfire, ...overrides },
      stdio: ["ignore", "pipe", "pipe"],
    });
    server.exited = new Promise((resolve) => server.process.once("exit", (code, signal) => resolve({ code, signal })));
    for (const stream of [server.process.stdout, server.process.stderr]) {
      stream.on("data", (chunk) => { server.log += chunk; });
    }
    await server.ready();
    return server;
  }

  async ready() {
    const healthy = async () => {
      if (this.process.exitCode !== null) throw new Error(`ringcable exited with ${this.process.exitCode}:\n${this.log}`);
      const answer = await fetch(`http://127.0.0.1:${this.port}/health`).catch(() => null);
      return answer?.status === 200;
    };
    await until("ringcable answers /health", healthy, READY_MS);
  }

  get pid() {
    return this.process.pid;
  }

  /** Sends `signal` and waits for the end; past the limit the process is killed and that is an error. */
  async stop(signal = "SIGTERM") {
    if (this.process.exitCode !== null || this.process.signalCode !== null) return this.exited;
    this.process.kill(signal);
    const late = setTimeout(() => this.process.kill("SIGKILL"), STOP_MS);
    const end = await this.exited;
    clearTimeout(late);
    if (signal !== "SIGKILL" && end.signal === "SIGKILL") throw new Error(`ringcable did not stop:\n${this.log}`);
    return end;
  }
}
