// Draws lines of the last minute, and the same figures as tables.

import { SECONDS_SHOWN, bytes, clock, count, millis, rateText } from "./figures.js";

const WIDTH = 240;
const HEIGHT = 56;
const TOP = 4;

const svgNode = (name, attributes) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
};

export const element = (name, properties = {}, ...children) => {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
};

// The contents of the cards. All `lines` of a card share one scale that begins at zero.
export const CARDS = [
  { id: "sessions", title: "Sessions", lines: ["sessions"], text: (now) => count(now.sessions), note: (now) => `${count(now.users)} users · +${rateText(now.accepted)}/s` },
  { id: "streams", title: "Streams", lines: ["streams"], text: (now) => count(now.streams), note: () => "with a listener" },
  { id: "deliveries", title: "Deliveries/s", lines: ["deliveries"], text: (now) => rateText(now.deliveries), note: (now) => `of ${rateText(now.publications)} publications/s` },
  { id: "messages", title: "Client messages/s", lines: ["messages"], text: (now) => rateText(now.messages), note: (now) => `${bytes(now.sentBytes)}/s go out` },
  { id: "rpc", title: "RPC latency", lines: ["slowest", "median"], text: (now) => millis(now.median), note: (now) => now.calls === null ? "no RPC configured" : `p99 ${millis(now.slowest)} · ${rateText(now.calls)} calls/s`, unit: "median" },
  { id: "memory", title: "Memory/connection", lines: ["perSession"], text: (now) => bytes(now.perSession), note: (now) => `${bytes(now.memory)} in all` },
];

export const BROKER_CARDS = [
  { id: "held", title: "Broker memory", lines: ["held"], text: (now) => bytes(now.held), note: (now) => now.heldMax > 0 ? `of ${bytes(now.heldMax)}` : "without a bound" },
  { id: "stored", title: "Messages kept", lines: ["stored"], text: (now) => count(now.stored), note: (now) => `in ${count(now.knownStreams)} stream${now.knownStreams === 1 ? "" : "s"}` },
  { id: "kept", title: "Sessions kept", lines: ["keptSessions"], text: (now) => count(now.keptSessions), note: (now) => `may come back · ${count(now.members)} present` },
  { id: "restores", title: "Restores/s", lines: ["restored"], text: (now) => rateText(now.restored), note: (now) => `${rateText(now.notRestored)}/s were not known` },
  { id: "replays", title: "Replays/s", lines: ["replayed"], text: (now) => rateText(now.replayed), note: (now) => `${rateText(now.answered)} answers/s, ${rateText(now.refused)} refused`, unit: "messages" },
  { id: "evictions", title: "Evictions/s", lines: ["evicted"], text: (now) => rateText(now.evicted), note: (now) => `${count(now.evictedInAll)} messages, ${count(now.evictedSessions)} sessions so far` },
];

export class Card {
  #definition;
  #value = element("strong", { className: "value" });
  #note = element("p", { className: "note" });
  #chart = svgNode("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", class: "chart" });

  constructor(definition, parent) {
    this.#definition = definition;
    const title = element("h3", {}, definition.title);
    const figure = element("p", { className: "figure" }, this.#value);
    if (definition.unit) figure.append(" ", element("span", { className: "unit" }, definition.unit));
    const card = element("div", { className: "card", id: `card-${definition.id}`, role: "group" }, title, figure, this.#note, this.#chart);
    title.id = `title-${definition.id}`;
    card.setAttribute("aria-labelledby", title.id);
    parent.append(card);
  }

  show(samples) {
    const { lines, text, note, title } = this.#definition;
    const now = samples.at(-1);
    this.#value.textContent = text(now);
    this.#note.textContent = note(now);
    const top = Math.max(...lines.flatMap((line) => samples.map((sample) => sample[line] ?? 0)), 1e-9);
    this.#chart.replaceChildren(...lines.flatMap((line, place) => drawLine(samples, line, top, place)));
    this.#chart.setAttribute("aria-label", describe(title, samples, text, lines.at(-1)));
  }
}

// The newest sample is at the right edge; one step is one second.
function drawLine(samples, line, top, place) {
  const last = samples.length - 1;
  const runs = [];
  let run = [];
  for (const [index, sample] of samples.entries()) {
    const value = sample[line];
    if (value === null) {
      if (run.length > 0) runs.push(run);
      run = [];
      continue;
    }
    const x = WIDTH - ((last - index) * WIDTH) / SECONDS_SHOWN;
    const y = HEIGHT - 1 - (value / top) * (HEIGHT - 1 - TOP);
    run.push([x.toFixed(1), y.toFixed(1)]);
  }
  if (run.length > 0) runs.push(run);
  return runs.flatMap((points) => {
    const path = points.length > 1 ? points.map((point) => point.join(" ")).join(" L ") : `${points[0].join(" ")} h 0.01`;
    const area = `M ${points[0][0]} ${HEIGHT} L ${path} L ${points.at(-1)[0]} ${HEIGHT} Z`;
    const stroke = svgNode("path", { d: `M ${path}`, class: `line line-${place}` });
    return points.length > 1 ? [svgNode("path", { d: area, class: `area area-${place}` }), stroke] : [stroke];
  });
}

function describe(title, samples, text, line) {
  const known = samples.filter((sample) => sample[line] !== null);
  if (known.length === 0) return `${title}: nothing yet`;
  const by = (better) => known.reduce((best, sample) => (better(sample[line], best[line]) ? sample : best));
  const low = text(by((a, b) => a < b));
  const high = text(by((a, b) => a > b));
  return `${title}, the last ${known.length} seconds: now ${text(samples.at(-1))}, lowest ${low}, highest ${high}`;
}

const row = (head, cells) => {
  const first = element("th", {}, head);
  first.scope = "row";
  return element("tr", {}, first, ...cells.map((cell) => element("td", {}, cell)));
};

// One row for every tenth second, so that the table can be read while it changes.
export function fillMinuteTable(body, samples) {
  const last = samples.length - 1;
  const shown = samples.filter((_, index) => (last - index) % 10 === 0).reverse();
  body.replaceChildren(...shown.map((sample) => row(clock(sample.at), [
    count(sample.sessions), count(sample.streams), rateText(sample.deliveries), rateText(sample.messages),
    millis(sample.median), millis(sample.slowest), bytes(sample.perSession), bytes(sample.memory),
    ...(sample.held === null ? [] : [bytes(sample.held), rateText(sample.restored), rateText(sample.replayed), rateText(sample.evicted)]),
  ])));
}

export function fillShardTable(body, samples) {
  const { shards } = samples.at(-1);
  const most = Math.max(...shards.map((shard) => shard.sessions), 1);
  const lines = shards.map((_, id) => samples.map((sample) => ({ deliveries: sample.shards[id]?.deliveries ?? null })));
  const top = Math.max(...lines.flat().map(({ deliveries }) => deliveries ?? 0), 1e-9);
  body.replaceChildren(...shards.map((shard, id) => {
    const share = element("meter", { min: 0, max: most, value: shard.sessions });
    share.setAttribute("aria-label", `Sessions of shard ${id} beside the fullest one`);
    const chart = svgNode("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true", class: "chart" });
    chart.replaceChildren(...drawLine(lines[id], "deliveries", top, 0));
    return row(String(id), [
      count(shard.sessions), share, rateText(shard.deliveries), chart, rateText(shard.messages), bytes(shard.outbox), count(shard.inbox), count(shard.slow),
    ]);
  }));
}
