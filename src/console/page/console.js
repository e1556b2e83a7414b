// The console: snapshots come over Action Cable, and everything on the page is made from them.

import { BROKER_CARDS, CARDS, Card, element, fillMinuteTable, fillShardTable } from "./charts.js";
import { Cable } from "./cable.js";
import { History, SECONDS_SHOWN, clock, duration } from "./figures.js";
import { ask, serverIsBack, startSessions } from "./sessions.js";
import { startStreams } from "./streams.js";

const IDENTIFIER = '{"channel":"ringcable:console"}';
const STATES = { connecting: "Connecting", live: "Live", lost: "Connection lost, trying again" };
const LEVELS = { ERROR: "Error", WARN: "Warning", SLOW: "Slow client" };

const $ = (id) => document.getElementById(id);
const past = new History();
const cards = CARDS.map((definition) => new Card(definition, $("cards")));
const brokerCards = BROKER_CARDS.map((definition) => new Card(definition, $("broker-cards")));
let recordShown = -1;
// The figures of the last minute survive a reload of the page, in this tab only. They contain no names.
let kept = JSON.parse(sessionStorage.getItem("snapshots") ?? "[]");

function showPhase(phase) {
  document.body.dataset.phase = phase;
  $("state").textContent = STATES[phase];
  document.title = phase === "live" ? "ringcable console" : `(${STATES[phase]}) ringcable console`;
  // The login may have ended. Then the answer to this request leads to the login form.
  if (phase === "live") serverIsBack();
  if (phase === "lost") loadRecords().catch(() => {});
}

function remember(snapshot) {
  kept = kept.filter(({ now_ms: at }) => snapshot.now_ms - at < SECONDS_SHOWN * 1000 && at < snapshot.now_ms);
  if (past.samples.length === 0) for (const old of kept) past.add(old);
  past.add(snapshot);
  kept.push(snapshot);
  sessionStorage.setItem("snapshots", JSON.stringify(kept));
}

function showSnapshot(snapshot) {
  remember(snapshot);
  document.body.dataset.snapshots = String(Number(document.body.dataset.snapshots ?? 0) + 1);
  for (const card of cards) card.show(past.samples);
  showBroker(snapshot.broker !== null);
  fillShardTable($("shards"), past.samples);
  fillMinuteTable($("minute"), past.samples);
  $("about").textContent = [`node ${snapshot.node}`, `ringcable ${snapshot.version}`, snapshot.driver, `up ${duration(snapshot.uptime_secs)}`].join(" · ");
  if (snapshot.last_record !== recordShown) {
    recordShown = snapshot.last_record;
    // After an error the next snapshot causes another try.
    loadRecords().catch(() => { recordShown = -1; });
  }
}

// Without a broker there is nothing to see of it.
function showBroker(isThere) {
  document.body.dataset.broker = isThere ? "yes" : "no";
  $("broker-figures").hidden = !isThere;
  if (isThere) for (const card of brokerCards) card.show(past.samples);
  for (const option of $("order").options) option.hidden = option.disabled = !isThere && option.value !== "listeners";
}

async function loadRecords() {
  const { records } = await ask("/_console/records");
  $("records").replaceChildren(...records.map(recordItem));
  $("no-records").hidden = records.length > 0;
  $("record-count").textContent = records.length > 0 ? String(records.length) : "";
}

function recordItem({ level, unix_ms: at, message, times, fields }) {
  const time = element("time", { dateTime: new Date(at).toISOString() }, clock(at));
  const facts = fields.filter(([name]) => name !== "context").map(([name, value]) => `${name} ${value}`).join(" · ");
  return element("li", { className: "record" },
    element("p", { className: "record-head" }, element("span", { className: `level level-${level.toLowerCase()}` }, LEVELS[level] ?? level), time),
    element("p", {}, times > 1 ? `${message} (${times} times)` : message), element("p", { className: "note" }, facts));
}

startSessions();
startStreams();
showPhase("connecting");
new Cable(`${location.origin.replace(/^http/, "ws")}/_console/cable`, IDENTIFIER, { phase: showPhase, message: showSnapshot });
