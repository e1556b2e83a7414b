// Finding sessions, ending one, and sending a test message.

import { bytes, count } from "./figures.js";
import { element } from "./charts.js";

const $ = (id) => document.getElementById(id);

// Resolves to the answer; rejects with a text that the page shows.
export async function ask(path, body) {
  const options = body && {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-Ringcable-Console": "1" },
    body: JSON.stringify(body),
  };
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer.");
  }
  if (response.status === 401) location.assign("/_console/login");
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.error ? `Refused: ${answer.error}.` : `Refused with status ${response.status}.`);
  return answer;
}

export function startSessions() {
  $("search").addEventListener("submit", (event) => {
    event.preventDefault();
    search();
  });
  $("publish").addEventListener("submit", (event) => {
    event.preventDefault();
    publish();
  });
  $("disconnect").addEventListener("close", disconnect);
}

// ---- search ----

async function search() {
  const query = $("query").value.trim();
  say("search-state", "Searching…");
  $("found").setAttribute("aria-busy", "true");
  try {
    const answer = await ask("/_console/search", { query });
    $("found").replaceChildren(...answer.sessions.map(sessionItem));
    say("search-state", summary(query, answer));
  } catch (error) {
    say("search-state", error.message, true);
  }
  $("found").removeAttribute("aria-busy");
}

function summary(query, { sessions, more, incomplete }) {
  const missing = incomplete ? " A shard was too busy to answer, so some may be missing." : "";
  if (sessions.length === 0) return (query ? `No session has “${query}” in its sid or identifiers.` : "Nobody is connected.") + missing;
  const found = sessions.length === 1 ? "1 session" : `${sessions.length} sessions`;
  return (more ? `The first ${found}; there are more. Say more about whom you look for.` : `${found} found.`) + missing;
}

function sessionItem(session) {
  const button = element("button", { type: "button", className: "button danger" }, "Disconnect");
  button.setAttribute("aria-label", `Disconnect session ${session.sid}`);
  const facts = [`shard ${session.shard}`];
  if (session.outbox_bytes > 0) facts.push(`${bytes(session.outbox_bytes)} not taken yet`);
  if (session.waits_for_app) facts.push("waits for the app");
  if (session.compressed) facts.push("compressed");
  if (session.encrypted) facts.push("TLS");
  const who = element("dl", { className: "who" }, ...pairs(session.identifiers).flatMap(([name, value]) => [
    element("dt", {}, name), element("dd", {}, value),
  ]));
  const name = element("p", { className: "session-name" }, element("code", { className: "sid" }, session.sid), element("span", { className: "facts" }, facts.join(" · ")));
  const item = element("li", { className: "session" }, element("div", { className: "session-text" }, name, who, subscriptionsOf(session)), button);
  button.addEventListener("click", () => confirmDisconnect(session, item, button));
  return item;
}

function subscriptionsOf({ subscriptions, subscriptions_left_out: leftOut }) {
  const total = subscriptions.length + leftOut;
  if (total === 0) return element("p", { className: "note" }, "No subscriptions");
  const rows = subscriptions.map(({ identifier, streams }) => {
    const params = pairs(identifier);
    const channel = params.find(([name]) => name === "channel")?.[1] ?? identifier;
    const others = params.filter(([name]) => name !== "channel").map(([name, value]) => `${name}: ${value}`).join(", ");
    return element("li", {}, element("span", { className: "channel" }, channel), element("span", { className: "params" }, others), streamList(streams));
  });
  if (leftOut > 0) rows.push(element("li", { className: "note" }, `and ${leftOut} more`));
  return element("details", {},
    element("summary", {}, total === 1 ? "1 subscription" : `${count(total)} subscriptions`),
    element("ul", { className: "subscriptions" }, ...rows));
}

// A stream is a button: a click copies it into the form for a test message.
function streamList(streams) {
  if (streams.length === 0) return element("span", { className: "note" }, "no stream");
  return element("span", { className: "streams" }, ...streams.map((stream) => {
    const button = element("button", { type: "button", className: "stream" }, stream);
    button.setAttribute("aria-label", `Send a test message to the stream ${stream}`);
    button.addEventListener("click", () => {
      $("stream").value = stream;
      $("message").focus();
    });
    return button;
  }));
}

// The members of a JSON object as texts, with decoded global ids of Rails; the text itself when it is no object.
export function pairs(text) {
  let value;
  try {
    value = JSON.parse(text);
  } catch {
    return [["identifiers", text]];
  }
  if (value === null || typeof value !== "object" || Array.isArray(value)) return [["identifiers", text]];
  return Object.entries(value).map(([name, member]) => [name, clear(typeof member === "string" ? member : JSON.stringify(member))]);
}

function clear(text) {
  if (!/^Z2lkOi8v[\w=-]+$/.test(text)) return text;
  try {
    return atob(text.replaceAll("-", "+").replaceAll("_", "/"));
  } catch {
    return text;
  }
}

// ---- disconnect ----

// A short name of the session's user, as far as the app has given one.
const nameOf = ({ identifiers }) => pairs(identifiers).map(([, value]) => value).join(", ") || "nobody by name";

// When the server is back, old error texts are removed.
export function serverIsBack() {
  for (const id of ["search-state", "publish-state", "streams-state", "stream-state"]) if ($(id).classList.contains("wrong")) say(id, "");
}

let chosen;

function confirmDisconnect(session, item, button) {
  chosen = { session, item, button };
  $("disconnect-sid").textContent = session.sid;
  $("disconnect-who").textContent = nameOf(session);
  $("disconnect").returnValue = "";
  $("disconnect").showModal();
}

async function disconnect() {
  const { session, item, button } = chosen;
  if ($("disconnect").returnValue !== "yes") return button.focus();
  const { shard, slot, generation, sid } = session;
  try {
    await ask("/_console/disconnect", { shard, slot, generation, sid, reconnect: $("reconnect").checked });
    say("search-state", `Session ${sid} of ${nameOf(session)} is disconnected.`);
  } catch (error) {
    say("search-state", error.message, true);
    return button.focus();
  }
  item.remove();
  // The button is gone, so the focus moves to the text above the list of sessions.
  $("search-state").focus();
}

// ---- publish ----

async function publish() {
  const stream = $("stream").value.trim();
  say("publish-state", "Publishing…");
  try {
    const { listeners } = await ask("/_console/publish", { stream, data: $("message").value });
    say("publish-state", heard(listeners));
    document.dispatchEvent(new CustomEvent("published", { detail: stream }));
  } catch (error) {
    say("publish-state", error.message, true);
  }
}

function heard(listeners) {
  if (listeners === null) return "Published. A shard was too busy to say how many listen.";
  if (listeners === 0) return "Published, but nobody listens to this stream.";
  return listeners === 1 ? "Published to 1 subscription." : `Published to ${count(listeners)} subscriptions.`;
}

export function say(id, text, wrong = false) {
  $(id).textContent = text;
  $(id).classList.toggle("wrong", wrong);
}
