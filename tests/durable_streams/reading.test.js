import { spawn } from "node:child_process";
import { createHmac } from "node:crypto";
import { once } from "node:events";
import { afterAll, beforeAll } from "vitest";
import { runConformanceTests } from "@durable-streams/server-conformance-tests";
import { adapter } from "./adapter.js";

const SECRET = "conformance-secret";
const ARGS = ["--ds", "--ds_skip_auth", "--public_streams", "--broker=memory", "--norpc", "--noauth", `--secret=${SECRET}`,
  "--host=127.0.0.1", "--port=0", "--cores=2", "--ds_poll_interval=2", "--history_limit=1000"];
let server, front;
const options = { baseUrl: "" };

beforeAll(async () => {
  server = spawn(process.env.RINGCABLE_BIN ?? new URL("../../target/debug/ringcable", import.meta.url).pathname, ARGS, { stdio: ["ignore", "pipe", "inherit"] });
  let log = "";
  const port = await new Promise((resolve, reject) => {
    server.stdout.on("data", (part) => {
      log += part;
      const found = log.match(/Handle Durable Streams requests at http:\/\/127\.0\.0\.1:(\d+)/);
      if (found && log.includes("is ready")) resolve(found[1]);
    });
    server.on("exit", () => reject(new Error(log)));
  });
  const key = createHmac("sha256", SECRET).update("api-cable").digest("hex");
  front = adapter({ target: `http://127.0.0.1:${port}`, key }).listen(0, "127.0.0.1");
  await once(front, "listening");
  options.baseUrl = `http://127.0.0.1:${front.address().port}`;
});

afterAll(() => {
  front?.close();
  front?.closeAllConnections();
  server?.kill();
});

runConformanceTests(options);
