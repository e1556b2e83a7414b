// A real Prometheus as Debian packages it, that scrapes one server every second.

import { spawn } from "node:child_process";
import { copyFile, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { freePort } from "../../browser/support/server.js";
import { until } from "../../browser/support/until.js";

const PROGRAM = process.env.PROMETHEUS_BIN ?? "prometheus";
const ALERTS = fileURLToPath(new URL("../../../deploy/prometheus/alerts.yml", import.meta.url));
const READY_MS = 20_000;

export class Prometheus {
  static async start(scraped) {
    const prometheus = new Prometheus();
    const port = await freePort();
    prometheus.url = `http://127.0.0.1:${port}`;
    prometheus.folder = await mkdtemp(join(tmpdir(), "ringcable-prometheus-"));
    const file = join(prometheus.folder, "prometheus.yml");
    await copyFile(ALERTS, join(prometheus.folder, "alerts.yml"));
    await writeFile(file, `
global: { scrape_interval: 1s, evaluation_interval: 1s }
rule_files: [alerts.yml]
scrape_configs:
  - job_name: ringcable
    static_configs: [{ targets: ["127.0.0.1:${scraped}"] }]
`);
    prometheus.output = "";
    prometheus.process = spawn(PROGRAM, [
      `--config.file=${file}`,
      `--storage.tsdb.path=${join(prometheus.folder, "data")}`,
      `--web.listen-address=127.0.0.1:${port}`,
      "--log.level=warn",
    ], { stdio: ["ignore", "pipe", "pipe"] });
    prometheus.exited = new Promise((resolve) => prometheus.process.once("exit", resolve));
    for (const stream of [prometheus.process.stdout, prometheus.process.stderr]) {
      stream.on("data", (data) => { prometheus.output += data; });
    }
    prometheus.process.once("error", (error) => { prometheus.output += error.message; });
    const ready = async () => {
      if (prometheus.process.exitCode !== null || prometheus.process.pid === undefined) {
        throw new Error(`${PROGRAM} did not start:\n${prometheus.output}`);
      }
      return fetch(`${prometheus.url}/-/ready`).then(({ ok }) => ok, () => false);
    };
    await until(`${PROGRAM} is ready`, ready, READY_MS);
    return prometheus;
  }

  async #get(path, parameters = {}) {
    const answer = await fetch(`${this.url}/api/v1/${path}?${new URLSearchParams(parameters)}`);
    const { status, data, error } = await answer.json();
    if (status !== "success") throw new Error(`${JSON.stringify(parameters)}: ${error}`);
    return data;
  }

  /** The series of an expression now: `{metric, value: [time, text]}`. */
  async query(expr) {
    return (await this.#get("query", { query: expr })).result;
  }

  /** The series of an expression over the last seconds: `{metric, values: [[time, text], …]}`. */
  async range(expr, seconds, step = 1) {
    const end = Date.now() / 1000;
    return (await this.#get("query_range", { query: expr, start: end - seconds, end, step })).result;
  }

  /** Names of all metrics that were scraped. */
  names() {
    return this.#get("label/__name__/values");
  }

  async rules() {
    return (await this.#get("rules")).groups.flatMap((group) => group.rules);
  }

  async stop() {
    this.process.kill("SIGKILL");
    await this.exited;
    await rm(this.folder, { recursive: true, force: true });
  }
}
