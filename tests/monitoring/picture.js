// Draws docs/images/grafana-data.png: the data of the dashboard's panels, asked of a real Prometheus while a server goes through
// good and bad minutes. Grafana itself is not packaged by Debian; this shows what it would be given. `npm run picture`.

import { fileURLToPath } from "node:url";
import { launch } from "../browser/support/chromium.js";
import { Scene } from "./support/load.js";
import { legend, panels } from "./support/panels.js";
import { Prometheus } from "./support/prometheus.js";

const IMAGE = fileURLToPath(new URL("../../docs/images/grafana-data.png", import.meta.url));
const CELL = { width: 60, height: 24, gap: 6 };
const COLOURS = ["#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#b877d9", "#5794f2", "#ca95e5", "#96d98d"];

const sleep = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));

/** What happens in the picture. */
async function play(scene) {
  scene.road.delayMs = () => 3 + Math.random() * 10;
  await scene.setClients(1_200);
  scene.run(500);
  await sleep(25);
  await scene.setClients(2_500);
  await sleep(20);
  // The app becomes slow.
  scene.road.delayMs = () => 200 + Math.random() * 900;
  await sleep(20);
  // It is gone for a moment.
  await scene.road.pause();
  await sleep(8);
  await scene.road.resume();
  scene.road.delayMs = () => 3 + Math.random() * 10;
  await sleep(12);
  await scene.campfire.disconnectUser(2, { reconnect: false });
  await scene.stall(3);
  await sleep(10);
  await scene.setClients(2_000);
  await sleep(8);
}

// ---- drawing ----

const escaped = (text) => text.replace(/[&<>"]/g, (char) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[char]);

function scaled(value, base, units) {
  const power = value === 0 ? 0 : Math.min(units.length - 1, Math.max(0, Math.floor(Math.log(Math.abs(value)) / Math.log(base))));
  const number = Number((value / base ** power).toPrecision(3));
  return number >= base && power + 1 < units.length ? `${number / base}${units[power + 1]}` : `${number}${units[power]}`;
}

function formatted(value, unit) {
  if (!Number.isFinite(value)) return "–";
  switch (unit) {
    case "bytes": return scaled(value, 1024, [" B", " KiB", " MiB", " GiB"]);
    case "Bps": return scaled(value, 1000, [" B/s", " kB/s", " MB/s"]);
    case "ops": return `${scaled(value, 1000, ["", " k", " M"])}/s`;
    case "reqps": return `${scaled(value, 1000, ["", " k", " M"])} req/s`;
    case "s": return value < 1 && value > 0 ? `${Number((value * 1000).toPrecision(3))} ms` : `${Number(value.toPrecision(3))} s`;
    case "percentunit": return `${Number((value * 100).toPrecision(3))} %`;
    default: return scaled(value, 1000, ["", " k", " M"]);
  }
}

/** A round number not below `value`. */
function ceiling(value, unit) {
  if (value <= 0) return 1;
  if (unit === "bytes") {
    const kibi = 1024 ** Math.floor(Math.log(value) / Math.log(1024));
    return ceiling(value / kibi) * kibi;
  }
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 2.5, 5, 10].map((step) => step * power).find((step) => step >= value * 0.999);
}

function graph({ unit, stacked, series }, width, height) {
  const lines = 14 * Math.min(series.length, 5);
  const box = { left: 58, top: 4, width: width - 70, height: height - lines - 22 };
  const times = series.flatMap(({ values }) => values.map(([time]) => time));
  const [start, end] = [Math.min(...times), Math.max(...times)];
  const floors = new Map();
  const drawn = series.map(({ name, values }) => ({
    name,
    points: values.filter(([, value]) => Number.isFinite(value)).map(([time, value]) => {
      const floor = stacked ? (floors.get(time) ?? 0) : 0;
      floors.set(time, floor + value);
      return { time, value, floor, top: floor + value };
    }),
  }));
  const max = ceiling(Math.max(0, ...drawn.flatMap(({ points }) => points.map(({ top }) => top))), unit);
  const x = (time) => (box.left + ((time - start) / Math.max(end - start, 1)) * box.width).toFixed(1);
  const y = (value) => (box.top + box.height - (value / max) * box.height).toFixed(1);
  const grid = [0, 0.5, 1].map((part) => `<line x1="${box.left}" x2="${box.left + box.width}" y1="${y(max * part)}" y2="${y(max * part)}" class="grid"/>
    <text x="${box.left - 6}" y="${Number(y(max * part)) + 4}" class="axis" text-anchor="end">${formatted(max * part, unit)}</text>`);
  const shapes = drawn.map(({ points }, index) => {
    if (points.length === 0) return "";
    const colour = COLOURS[index % COLOURS.length];
    const over = points.map(({ time, top }) => `${x(time)},${y(top)}`).join(" ");
    const under = points.toReversed().map(({ time, floor }) => `${x(time)},${y(floor)}`).join(" ");
    return `<polygon points="${over} ${under}" fill="${colour}" fill-opacity="${stacked ? 0.4 : 0.08}"/>
      <polyline points="${over}" fill="none" stroke="${colour}" stroke-width="1.4"/>`;
  });
  const entries = drawn.map(({ name, points }, index) => ({
    name,
    colour: COLOURS[index % COLOURS.length],
    last: points.at(-1)?.value ?? Number.NaN,
    top: Math.max(...points.map(({ value }) => value)),
  }));
  // Where there are too many for the room, the largest.
  if (entries.length > 5) entries.sort((one, other) => other.top - one.top);
  const names = entries.slice(0, 5).map(({ name, colour, last, top }, line) => {
    const at = height - lines + 14 * line + 9;
    return `<rect x="10" y="${at - 6}" width="12" height="3" fill="${colour}"/>
      <text x="28" y="${at}" class="legend">${escaped(name)}</text>
      <text x="${width - 112}" y="${at}" class="legend" text-anchor="end">${formatted(last, unit)}</text>
      <text x="${width - 10}" y="${at}" class="legend" text-anchor="end">max ${formatted(top, unit)}</text>`;
  });
  return `<svg width="${width}" height="${height}">${grid.join("")}${shapes.join("")}${names.join("")}</svg>`;
}

function stat({ unit, series, title }, width, height) {
  const [{ name, values }] = series;
  const text = title.startsWith("Version") ? name : formatted(values.at(-1)[1], unit);
  const size = text.length > 10 ? 15 : 26;
  const max = Math.max(...values.map(([, value]) => value), 1e-9);
  const points = values.map(([, value], index) => `${((index / Math.max(values.length - 1, 1)) * width).toFixed(1)},${(height - 2 - (value / max) * height * 0.35).toFixed(1)}`);
  return `<svg width="${width}" height="${height}"><polyline points="${points.join(" ")}" fill="none" stroke="#73bf69" stroke-opacity="0.5"/>
    <text x="${width / 2}" y="${height / 2 + 4}" text-anchor="middle" fill="#73bf69" font-size="${size}">${escaped(text)}</text></svg>`;
}

async function withData(prometheus, panel, seconds) {
  const series = [];
  for (const { expr, legendFormat } of panel.targets) {
    for (const { metric, values } of await prometheus.range(expr, seconds)) {
      series.push({ name: legend(legendFormat, metric), values: values.map(([time, value]) => [time, Number(value)]) });
    }
  }
  return { ...panel, series };
}

function page(filled) {
  const boxes = [];
  let row;
  for (const panel of filled) {
    const { gridPos: { x, y, w, h } } = panel;
    if (panel.row !== row) {
      row = panel.row;
      boxes.push(`<h2 style="top:${(y - 1) * CELL.height}px">${row}</h2>`);
    }
    const [width, height] = [w * CELL.width - CELL.gap, h * CELL.height - CELL.gap];
    const drawing = panel.type === "stat" ? stat(panel, width, height - 22) : graph(panel, width, height - 22);
    boxes.push(`<div style="left:${x * CELL.width}px;top:${y * CELL.height}px;width:${width}px;height:${height}px"><h3>${escaped(panel.title)}</h3>${drawing}</div>`);
  }
  const bottom = Math.max(...filled.map(({ gridPos: { y, h } }) => y + h)) * CELL.height;
  return `<!doctype html><style>
    body { margin: 0; background: #111217; color: #ccccdc; font: 12px "DejaVu Sans", sans-serif; position: relative; width: ${24 * CELL.width + 12}px; height: ${bottom + 12}px; }
    main { position: absolute; left: 9px; top: 6px; }
    h2 { position: absolute; left: 2px; margin: 0; font-size: 13px; line-height: ${CELL.height - 2}px; font-weight: 600; white-space: nowrap; }
    div { position: absolute; background: #181b1f; border: 1px solid #25272d; border-radius: 3px; box-sizing: border-box; overflow: hidden; }
    h3 { margin: 3px 8px 0; font-size: 12px; line-height: 18px; font-weight: 500; }
    .grid { stroke: #2c2f36; } .axis { fill: #9a9ba6; font-size: 10px; } .legend { fill: #ccccdc; font-size: 10px; }
  </style><main>${boxes.join("\n")}</main>`;
}

const scene = await Scene.start();
const prometheus = await Prometheus.start(scene.port);
try {
  const begun = performance.now();
  await play(scene);
  const seconds = Math.ceil((performance.now() - begun) / 1000);
  const filled = [];
  for (const panel of panels("5s")) filled.push(await withData(prometheus, panel, seconds));
  const browser = await launch();
  const window = await browser.newPage({ viewport: { width: 24 * CELL.width + 12, height: 800 }, deviceScaleFactor: 1 });
  await window.setContent(page(filled));
  await window.screenshot({ path: IMAGE, fullPage: true });
  await browser.close();
  console.log(`wrote ${IMAGE}`);
} finally {
  await prometheus.stop();
  await scene.stop();
}
