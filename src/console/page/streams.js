// Lists of streams, and one stream in detail: who listens, what its history keeps, who is present.

import { ask, pairs, say } from "./sessions.js";
import { bytes, clock, count, duration } from "./figures.js";
import { element } from "./charts.js";

const $ = (id) => document.getElementById(id);
const FIGURES = ["listeners", "messages", "bytes", "members"];
// The stream that is shown in detail.
let shown;

export function startStreams() {
  $("stream-search").addEventListener("submit", (event) => {
    event.preventDefault();
    list();
  });
  $("order").addEventListener("change", list);
  $("show-stream").addEventListener("click", () => {
    const stream = $("stream").value.trim();
    if (stream) open(stream);
    else $("stream").focus();
  });
  $("refresh-stream").addEventListener("click", () => open(shown));
  $("message-stream").addEventListener("click", () => {
    $("stream").value = shown;
    $("message").focus();
  });
  $("close-stream").addEventListener("click", close);
  document.addEventListener("published", ({ detail: stream }) => {
    if (stream === shown) load();
  });
}

// ---- the list ----

async function list() {
  const query = $("stream-query").value.trim();
  say("streams-state", "Searching…");
  $("streams-found").setAttribute("aria-busy", "true");
  try {
    const answer = await ask("/_console/streams", { query, order: $("order").value });
    $("streams").replaceChildren(...answer.streams.map(streamRow));
    $("streams-found").hidden = answer.streams.length === 0;
    say("streams-state", summary(query, answer));
  } catch (error) {
    say("streams-state", error.message, true);
  }
  $("streams-found").removeAttribute("aria-busy");
}

function summary(query, { streams, more, uncertain, incomplete }) {
  const missing = incomplete ? " A shard was too busy to answer, so some may be missing, and figures may be too small." : "";
  if (streams.length === 0) return (query ? `No stream has “${query}” in its name.` : "There are no streams.") + missing;
  const found = streams.length === 1 ? "1 stream" : `${streams.length} streams`;
  if (!more) return `${found} found.${missing}`;
  const doubt = uncertain ? " Some of the others may have more listeners than the last ones here." : "";
  return `The first ${found}; there are more.${doubt}${missing}`;
}

function streamRow({ name, is_cut: isCut, ...figures }) {
  const title = isCut ? element("span", { className: "stream-cut", title: "Too long to be opened here" }, name) : opener(name);
  const head = element("th", { scope: "row" }, title, ...inWords(name));
  const shownAs = (figure) => (figure === "bytes" ? bytes : count)(figures[figure]);
  const cells = FIGURES.map((figure) => element("td", { className: figure === "listeners" ? "" : "of-broker" }, shownAs(figure)));
  return element("tr", {}, head, ...cells);
}

// A name with the global ids of Rails decoded, if there are any.
function inWords(name) {
  const words = name.replace(/Z2lkOi8v[\w-]+/g, decoded);
  return words === name ? [] : [element("p", { className: "note" }, words)];
}

// What follows an id may look like a part of it, such as "_reads", and then what is decoded is no text.
function decoded(text) {
  for (let end = text.length; end > 0; end = text.lastIndexOf("_", end - 1)) {
    const id = fromBase64(text.slice(0, end));
    if (/^gid:[!-~]+$/.test(id)) return id + text.slice(end);
  }
  return text;
}

function fromBase64(text) {
  try {
    return atob(text.replaceAll("-", "+").replaceAll("_", "/"));
  } catch {
    return "";
  }
}

function opener(name) {
  const button = element("button", { type: "button", className: "stream" }, name);
  button.setAttribute("aria-label", `Show the stream ${name}`);
  button.addEventListener("click", () => open(name));
  return button;
}

// ---- one stream ----

async function open(stream) {
  shown = stream;
  $("stream-detail").hidden = false;
  $("stream-name").textContent = stream;
  $("stream-name").focus();
  await load();
}

async function load() {
  const stream = shown;
  say("stream-state", "Looking…");
  let report;
  try {
    report = await ask("/_console/stream", { stream });
  } catch (error) {
    return say("stream-state", error.message, true);
  }
  // Another stream may have been opened meanwhile.
  if (stream !== shown) return;
  say("stream-state", report.incomplete ? "A shard was too busy to answer, so something may be missing." : "");
  $("stream-parts").replaceChildren(...parts(report));
}

function close() {
  $("stream-detail").hidden = true;
  shown = undefined;
  $("stream-query").focus();
}

function parts({ listeners, listening, kept }) {
  const all = [part("Listeners", listeners, listening.map(listenerItem), "Nobody listens.")];
  if (kept === null) return [element("p", { className: "note" }, "No history and no presence: the server has no broker."), ...all];
  const { history, members } = kept;
  const messages = history?.newest.map(messageItem) ?? [];
  return [facts(history),
    part("Messages", history?.messages ?? 0, messages, history ? "All messages are gone." : "Nothing was published here."),
    part("Members", members.total, members.records.map(memberItem), "Nobody is present."), ...all];
}

function part(title, total, items, nothing) {
  const head = element("h4", {}, title, element("span", { className: "count" }, count(total)));
  if (total === 0) return element("section", {}, head, element("p", { className: "note" }, nothing));
  if (items.length < total) items.push(element("li", { className: "note" }, `and ${count(total - items.length)} more`));
  const scroll = element("div", { className: "scroll part", tabIndex: 0, role: "group" }, element("ol", {}, ...items));
  scroll.setAttribute("aria-label", title);
  return element("section", {}, head, scroll);
}

function facts(history) {
  if (!history) return element("p", { className: "note" }, "The broker does not know this stream.");
  const { epoch, last, messages, bytes: size, messages_max: most, ttl_secs: ttl } = history;
  const texts = [
    ["Kept", messages === 0 ? "nothing" : `${bytes(size)}, offsets ${last - messages + 1} to ${last}`],
    ["Last offset", String(last)], ["Epoch", epoch],
    ["Limits", most === 0 ? "nothing is kept" : `${count(most)} messages for ${duration(ttl)}`],
  ];
  return element("dl", { className: "position" }, ...texts.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
}

function messageItem({ offset, stored_unix_ms: at, bytes: size, text }) {
  return element("li", { className: "kept" },
    element("p", { className: "kept-head" }, element("strong", {}, `#${offset}`),
      element("time", { dateTime: new Date(at).toISOString() }, clock(at)), element("span", {}, bytes(size))),
    element("code", {}, text));
}

const memberItem = ({ id, info }) => element("li", { className: "kept" },
  element("strong", {}, id === "" ? "(empty id)" : id), ...(info === null ? [] : [" ", element("code", {}, info)]));

function listenerItem({ shard, sid, identifiers, identifier }) {
  const who = pairs(identifiers).map(([, value]) => value).join(", ") || "nobody by name";
  const params = pairs(identifier).map(([, value]) => value).join(", ");
  return element("li", { className: "kept" },
    element("p", { className: "kept-head" }, element("strong", {}, who), element("span", {}, `shard ${shard}`)),
    element("p", { className: "note" }, element("code", {}, sid), ` · ${params}`));
}
