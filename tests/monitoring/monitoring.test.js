// The dashboard and the alerts against a real Prometheus that scrapes a server at work.

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { after, before, describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import { text as dashboardOf } from "../../deploy/grafana/make.mjs";
import { until } from "../browser/support/until.js";
import { plainRequest } from "../proxy/support/client.js";
import { Scene } from "./support/load.js";
import { dashboardText, metricsIn, panels } from "./support/panels.js";
import { Prometheus } from "./support/prometheus.js";

const deploy = (path) => fileURLToPath(new URL(`../../deploy/${path}`, import.meta.url));
const promtool = (...args) => spawnSync(process.env.PROMTOOL_BIN ?? "promtool", args, { encoding: "utf8" });

/** Enough for the bytes per connection to be told. */
const CLIENTS = 1_050;
/** Between two broadcasts: each goes to all of them. */
const PAUSE_MS = 400;
/** Long enough for rates over 10 s that have seen all of it. */
const LOAD_MS = 15_000;

/** Suffixes of a histogram's series. */
const family = (name) => name.replace(/_(bucket|sum|count)$/, "");

describe("files", () => {
  test("the dashboard is what its script makes", () => {
    assert.equal(dashboardText(), dashboardOf(), "run: node deploy/grafana/make.mjs");
  });

  test("promtool accepts the configuration and the alerts", () => {
    for (const args of [["check", "config", deploy("prometheus/prometheus.yml")], ["check", "rules", deploy("prometheus/alerts.yml")]]) {
      const { error, status, stdout, stderr } = promtool(...args);
      assert.ifError(error);
      assert.equal(status, 0, stdout + stderr);
    }
  });

  test("every alert fires when it should, and none does in health", () => {
    const { error, status, stdout, stderr } = promtool("test", "rules", deploy("prometheus/alerts.test.yml"));
    assert.ifError(error);
    assert.equal(status, 0, stdout + stderr);
  });
});

describe("a scraped server", () => {
  let scene;
  let prometheus;

  before(async () => {
    scene = await Scene.start();
    prometheus = await Prometheus.start(scene.port);
    scene.road.delayMs = () => (Math.random() < 0.1 ? 150 : 2);
    await scene.setClients(CLIENTS);
    scene.run(PAUSE_MS);
    await new Promise((resolve) => setTimeout(resolve, LOAD_MS));
  });

  after(async () => {
    await prometheus?.stop();
    await scene?.stop();
  });

  test("is up for Prometheus", async () => {
    await until("a scrape", async () => (await prometheus.query("up")).some(({ value }) => value[1] === "1"));
  });

  for (const { row, title, targets } of panels()) {
    test(`${row}: ${title} has data`, async () => {
      for (const { expr } of targets) {
        // A scrape that came late leaves a gap.
        const found = async () => {
          const series = await prometheus.query(expr);
          return series.length > 0 && series;
        };
        const series = await until(`series: ${expr}`, found);
        for (const { metric, value } of series) {
          assert.ok(Number.isFinite(Number(value[1])), `${value[1]} for ${JSON.stringify(metric)}: ${expr}`);
        }
      }
    });
  }

  test("the panels show what the load does", async () => {
    const value = async (panel, index = 0) => {
      const { targets } = panels().find(({ title }) => title === panel);
      return Number((await prometheus.query(targets[index].expr))[0].value[1]);
    };
    assert.ok(await value("Clients") >= CLIENTS);
    assert.ok(await value("Bytes per connection") > 100);
    assert.equal(await value("Users"), 3);
    assert.ok(await value("Deliveries") > 20);
    assert.ok(await value("Time of a call", 2) >= 0.1, "the slow ones are in the 99 %");
    assert.ok(await value("Slow calls, late answers") > 0);
    assert.ok(await value("Messages from clients", 1) > 0, "the mistakes");
    assert.ok(await value("Receivers per message") > 5);
    assert.ok(await value("StatsD") > 0);
    assert.equal(await value("StatsD", 1), 0);
  });

  test("every metric in the dashboard and in the alerts exists, and every one of the server is in the dashboard", async () => {
    const scraped = new Set((await prometheus.names()).filter((name) => /^(anycable_go|ringcable)_/.test(name)));
    const shown = new Set(panels().flatMap(({ targets }) => targets.flatMap(({ expr }) => metricsIn(expr))));
    const alerted = (await prometheus.rules()).flatMap(({ query }) => metricsIn(query));
    for (const name of [...shown, ...alerted]) assert.ok(scraped.has(name), `${name} does not exist`);
    const shownFamilies = new Set([...shown].map(family));
    const missing = [...scraped].map(family).filter((name) => !shownFamilies.has(name));
    assert.deepEqual(missing, []);
  });

  test("the alerts are evaluated without an error, and none fires", async () => {
    const rules = await prometheus.rules();
    assert.ok(rules.length >= 12);
    for (const { name, health, lastError, state } of rules) {
      assert.equal(health, "ok", `${name}: ${lastError}`);
      assert.notEqual(state, "firing", name);
    }
  });

  test("the app found nothing wrong with any call", () => assert.deepEqual(scene.campfire.violations, []));

  test("the page is complete while it is scraped", async () => {
    const page = await (await plainRequest(scene.port, "/metrics")).text();
    assert.ok(page.endsWith("\n") && page.includes("\nringcable_rpc_duration_seconds_count "));
  });
});
