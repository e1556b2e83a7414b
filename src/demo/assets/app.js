// The chat page: rooms, messages, who is here, who types. Everything it shows came over one Action Cable connection.

import { Cable } from "/demo/cable.js";
import { Live, TRIPS_SHOWN_MAX } from "/demo/live.js";

const SUGGESTED_NAMES = ["Ada", "Grace", "Linus", "Margaret", "Dennis", "Radia", "Ken", "Barbara", "Edsger", "Frances"];
const CABLE_PATH = "/cable";
const NAME_CHARS_MAX = 24;
const GROUP_MS = 5 * 60 * 1000;
const TYPING_SHOWN_MS = 4000;
const TYPING_SENT_EVERY_MS = 1000;
const TYPING_IDLE_MS = 2500;
const PRESENCE_REFRESH_MS = 50 * 1000;
const NEAR_END_PX = 120;
const STALE_MS = 6000;
const ROOM_MESSAGES_MAX = 400;
const MEMBERS_SHOWN_MAX = 100;

const $ = (id) => document.getElementById(id);
const live = new Live();

// ---- who I am -----------------------------------------------------------------------------------------------------

async function chooseName() {
  const query = new URLSearchParams(location.search).get("name");
  const known = (query ?? sessionStorage.getItem("name") ?? "").trim().slice(0, NAME_CHARS_MAX);
  return known || askForName();
}

// Resolves with a name, or with null when a user who has a name closes the dialog without a new one.
function askForName(current) {
  const dialog = $("join");
  const input = $("join-name");
  const change = current !== undefined;
  $("join-title").textContent = change ? "Change your name" : "Who are you?";
  $("join-text").textContent = change ? "The page loads again under the new one." : "There are no accounts here: choose a name and walk in.";
  $("join-submit").textContent = change ? "Save" : "Join the chat";
  $("join-cancel").hidden = !change;
  input.value = current ?? suggestName();
  $("join-cancel").onclick = () => dialog.close("");
  dialog.returnValue = "";
  dialog.showModal();
  input.select();
  return new Promise((resolve) => {
    dialog.onclose = () => {
      if (dialog.returnValue === "ok") resolve(input.value.trim());
      else if (change) resolve(null);
      // Without a name there is no chat to return to, so the dialog opens again.
      else dialog.showModal();
    };
  });
}

function suggestName(taken = []) {
  const free = SUGGESTED_NAMES.filter((name) => !taken.includes(name));
  return free[Math.floor(Math.random() * free.length)] ?? "Guest";
}

function remember(name) {
  sessionStorage.setItem("name", name);
  document.cookie = `demo_user=${encodeURIComponent(name)}; path=/; SameSite=Lax`;
  const url = new URL(location.href);
  url.searchParams.set("name", name);
  history.replaceState(null, "", url);
}

// ---- state --------------------------------------------------------------------------------------------------------

const state = {
  me: null,
  rooms: new Map(),
  currentId: null,
  // Names by presence id.
  members: new Map(),
  typing: new Map(),
  // My messages that the server has not sent back yet, by client id.
  unsent: new Map(),
};
let cable;
let roomSubscriptions = [];

const currentRoom = () => state.rooms.get(state.currentId);

function start(name) {
  remember(name);
  state.me = { id: null, name };
  $("my-name").textContent = name;
  dressAvatar($("my-avatar"), name);
  $("endpoint").textContent = location.host + CABLE_PATH;

  // The windows of one browser share the cookie, so the name also goes into the URL.
  cable = new Cable(() => `${CABLE_PATH}?name=${encodeURIComponent(name)}`, live);
  listen("RoomListChannel", takeRoomList);
  listen("UnreadRoomsChannel", ({ roomId }) => markUnread(roomId));
  listen("UnreadNotificationsChannel", ({ roomId }) => markMentioned(roomId));
  listen("ReadRoomsChannel", ({ room_id }) => markRead(room_id));
  listen("UserUnreadRoomsChannel", ({ roomId }) => markUnread(roomId));
  listen("UserInvolvementsChannel", () => {});
  listen("HeartbeatChannel", () => {});
}

function listen(channel, received) {
  return cable.subscribe({ channel }, { received });
}

function takeRoomList({ you, rooms }) {
  if (you) state.me = you;
  for (const { id, name, topic, unread } of rooms ?? []) {
    const room = state.rooms.get(id) ?? { id, messages: new Map(), lastId: 0, mentioned: false, away: null, isBack: false };
    state.rooms.set(id, Object.assign(room, { name, topic, unread: id === state.currentId ? 0 : unread }));
  }
  if (state.currentId === null && state.rooms.size > 0) enterRoom(state.rooms.keys().next().value);
  renderRooms();
}

// ---- one room -----------------------------------------------------------------------------------------------------

function enterRoom(id) {
  for (const subscription of roomSubscriptions) subscription.unsubscribe();
  state.currentId = id;
  state.typing.clear();
  state.members.clear();
  markRead(id);

  const room = state.rooms.get(id);
  const onlyHere = (received) => (message) => state.currentId === id && received(message);
  const create = (channel, callbacks) => cable.subscribe({ channel, room_id: id }, callbacks);
  let wasThere = false;
  const messages = create("RoomChannel", {
    connected: ({ restored }) => {
      if (restored) room.away = null;
      room.isBack = wasThere && !restored;
      wasThere = true;
    },
    received: (message, missed) => takeRoomMessage(room, message, missed),
    caughtUp: () => sayAgain(room),
  });
  const presence = create("PresenceChannel", {
    connected: ({ restored }) => enterPresence(presence, restored),
    presence: onlyHere(takePresence),
  });
  const typing = create("TypingNotificationsChannel", { received: onlyHere(takeTyping) });
  roomSubscriptions = [messages, presence, typing];
  Object.assign(roomSubscriptions, { messages, presence, typing });

  renderRoom();
  renderMembers();
  renderTyping();
}

// A session that is continued has to join again. When it does so in time, nobody sees it leave.
function enterPresence(presence, restored) {
  presence.join(state.me.id, { name: state.me.name });
  presence.askWhoIsHere();
  // The app was told that the connection has ended, and nothing of its return.
  if (restored) presence.perform("refresh");
}

function takePresence({ type, id, info, records }) {
  if (type === "info") state.members = new Map((records ?? []).map((member) => [member.id, nameOf(member)]));
  else if (type === "join") state.members.set(id, nameOf({ id, info }));
  else if (type === "leave") state.members.delete(id);
  renderMembers();
}

// Members choose their info themselves.
const nameOf = ({ id, info }) => (typeof info?.name === "string" ? info.name.slice(0, NAME_CHARS_MAX) : id);

function takeRoomMessage(room, { history, after, message, refused }, missed) {
  if (refused !== undefined) {
    state.unsent.delete(refused);
  } else if (history) {
    takeHistory(room, history, after);
  } else if (message) {
    if (message.id > room.lastId + 1) {
      // A gap in the ids: messages were sent while this page was not connected, and the server does not keep them any more.
      room.isBack ||= missed;
      catchUp(room);
    } else {
      if (missed && !room.messages.has(message.id)) noteMissed(room, message);
      keep(room, message);
    }
  }
  if (room.id === state.currentId) renderMessages();
}

// The messages of the last absence are marked.
function noteMissed(room, { id }) {
  room.away ??= { firstId: id, count: 0 };
  room.away.count += 1;
  live.missed();
}

function takeHistory(room, history, after) {
  const last = room.messages.get(room.lastId);
  if (after === 0) {
    // The answer to a subscribe. The server may have restarted, so this history replaces all messages of the page.
    room.messages.clear();
    room.lastId = 0;
    room.away = null;
  }
  const isThere = (message) => history.some(({ id, sent_at_ms }) => id === message.id && sent_at_ms === message.sent_at_ms);
  const goesOn = after > 0 || (last && isThere(last));
  if (room.isBack && goesOn) for (const message of history) if (message.id > (last?.id ?? 0)) noteMissed(room, message);
  room.isBack = false;
  history.forEach((message) => keep(room, message));
  if (after === 0 && history.length > 0) {
    catchUp(room);
    sayAgain(room);
  }
}

function catchUp(room) {
  if (room.id === state.currentId) roomSubscriptions.messages.perform("catch_up", { after: room.lastId });
}

function keep(room, message) {
  room.messages.set(message.id, message);
  if (room.messages.size > ROOM_MESSAGES_MAX) room.messages.delete(room.messages.keys().next().value);
  room.lastId = Math.max(room.lastId, message.id);
  state.typing.delete(message.user.id);
  renderTyping();
  const mine = state.unsent.get(message.client_id);
  if (mine) {
    state.unsent.delete(message.client_id);
    message.tripMs = performance.now() - mine.sentAt;
    live.tripTook(message.tripMs);
  }
}

// ---- speaking and typing ------------------------------------------------------------------------------------------

function speak(body) {
  const clientId = crypto.getRandomValues(new Uint32Array(2)).join("-");
  state.unsent.set(clientId, { clientId, roomId: state.currentId, body });
  send(clientId);
  renderMessages();
  scrollToEnd();
}

function send(clientId) {
  const message = state.unsent.get(clientId);
  const { body } = message;
  // The round trip of what was written without a connection begins when it is sent.
  message.sentAt = performance.now();
  roomSubscriptions.messages.perform("speak", { body, client_id: clientId });
}

// After a reconnect: messages of mine that are not in the history never arrived, so they are sent again.
function sayAgain(room) {
  for (const [clientId, { roomId }] of state.unsent) if (roomId === room.id) send(clientId);
}

let typingSentAt = 0;
let typingIdle;

function typed() {
  const now = performance.now();
  clearTimeout(typingIdle);
  if ($("composer-text").value.trim() === "") return stopTyping();
  if (now - typingSentAt >= TYPING_SENT_EVERY_MS) {
    typingSentAt = now;
    roomSubscriptions.typing?.perform("start");
  }
  typingIdle = setTimeout(stopTyping, TYPING_IDLE_MS);
}

function stopTyping() {
  clearTimeout(typingIdle);
  if (typingSentAt > 0) roomSubscriptions.typing?.perform("stop");
  typingSentAt = 0;
}

function takeTyping({ action, user }) {
  if (user.id === state.me.id) return;
  clearTimeout(state.typing.get(user.id)?.timer);
  state.typing.delete(user.id);
  if (action === "start") {
    const timer = setTimeout(() => { state.typing.delete(user.id); renderTyping(); }, TYPING_SHOWN_MS);
    state.typing.set(user.id, { name: user.name, timer });
  }
  renderTyping();
}

// ---- unread -------------------------------------------------------------------------------------------------------

function markUnread(roomId) {
  const room = state.rooms.get(roomId);
  if (room && roomId !== state.currentId) room.unread += 1;
  renderRooms();
}

function markMentioned(roomId) {
  const room = state.rooms.get(roomId);
  if (room && roomId !== state.currentId) room.mentioned = true;
  renderRooms();
}

function markRead(roomId) {
  const room = state.rooms.get(roomId);
  if (room) Object.assign(room, { unread: 0, mentioned: false });
  renderRooms();
}

// ---- drawing ------------------------------------------------------------------------------------------------------

function element(tag, { className, text, ...attributes } = {}, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function dressAvatar(node, name) {
  let hash = 7;
  for (const letter of name) hash = (hash * 31 + letter.codePointAt(0)) % 360;
  node.style.setProperty("--hue", hash);
  node.textContent = [...name][0]?.toUpperCase() ?? "?";
  return node;
}

const avatar = (name) => dressAvatar(element("span", { className: "avatar", "aria-hidden": "true" }), name);

function renderRooms() {
  const rows = [...state.rooms.values()].map((room) => {
    const current = room.id === state.currentId;
    const button = element("button", { type: "button", className: "room-link", "data-room": room.id },
      element("span", { className: "hash", text: "#", "aria-hidden": "true" }),
      element("span", { className: "room-link-name", text: room.name }));
    if (current) button.setAttribute("aria-current", "page");
    if (room.unread > 0) {
      const label = `${room.unread} unread${room.mentioned ? ", you are mentioned" : ""}`;
      const text = `${room.mentioned ? "@ " : ""}${room.unread > 99 ? "99+" : room.unread}`;
      button.append(element("span", { className: room.mentioned ? "badge mention" : "badge", text, role: "img", "aria-label": label }));
    }
    button.addEventListener("click", () => !current && enterRoom(room.id));
    return element("li", {}, button);
  });
  const focused = document.activeElement?.dataset?.room;
  $("rooms").replaceChildren(...rows);
  if (focused) $("rooms").querySelector(`[data-room="${focused}"]`)?.focus();
  $("rooms").querySelector("[aria-current]")?.scrollIntoView({ block: "nearest", inline: "nearest" });
  const unread = [...state.rooms.values()].reduce((sum, room) => sum + room.unread, 0);
  document.title = `${unread > 0 ? `(${unread}) ` : ""}${currentRoom()?.name ?? "ringcable"} · ringcable demo`;
}

function renderRoom() {
  const room = currentRoom();
  $("room-name").textContent = room.name;
  $("room-topic").textContent = room.topic;
  $("composer-text").placeholder = `Message ${room.name}`;
  $("messages").replaceChildren();
  renderMessages();
  scrollToEnd();
}

// The messages in order, then my own that the server has not sent back yet.
function renderMessages() {
  const room = currentRoom();
  if (!room) return;
  const list = $("messages");
  const arrived = [...room.messages.values()].sort((a, b) => a.id - b.id);
  const underway = [...state.unsent.values()].filter(({ roomId }) => roomId === room.id)
    .map(({ clientId, body }) => ({ id: clientId, user: state.me, body, sent_at_ms: Date.now(), underway: true }));

  const wanted = new Map();
  let previous;
  for (const message of [...arrived, ...underway]) {
    if (room.away?.firstId === message.id) {
      wanted.set(`away/${message.id}/${room.away.count}`, () => awayRow(room.away.count));
      previous = undefined;
    }
    const grouped = previous?.user.id === message.user.id && message.sent_at_ms - previous.sent_at_ms < GROUP_MS;
    const key = keyOf(message, grouped);
    wanted.set(key, () => messageRow(message, grouped));
    previous = message;
  }
  // Rows that stay keep their node, so that a screen reader reads only new messages aloud.
  for (const row of [...list.children]) if (!wanted.has(row.dataset.key)) row.remove();
  let at = list.firstElementChild;
  for (const [key, row] of wanted) {
    if (at?.dataset.key === key) at = at.nextElementSibling;
    else list.insertBefore(row(), at).dataset.key = key;
  }
  if (atEnd) scrollToEnd();
}

function awayRow(count) {
  const text = count === 1 ? "1 message while you were offline" : `${count} messages while you were offline`;
  return element("li", { className: "away" }, element("span", { text }));
}

const keyOf = ({ id, user, sent_at_ms, underway }, grouped) =>
  `${id}/${user.id}/${underway ? "underway" : sent_at_ms}/${grouped}`;

function messageRow(message, grouped) {
  const mine = message.user.id === state.me.id;
  const classes = ["message", mine && "mine", grouped && "grouped", message.underway && "underway"];
  const row = element("li", { className: classes.filter(Boolean).join(" ") });
  if (!grouped) {
    const sent = new Date(message.sent_at_ms);
    const time = sent.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
    row.append(avatar(message.user.name), element("div", { className: "message-head" },
      element("strong", { text: mine ? "You" : message.user.name }),
      element("time", { datetime: sent.toISOString(), text: time })));
  }
  row.append(element("p", { className: "bubble", text: message.body }));
  if (message.underway) row.append(element("span", { className: "trip-note", text: "sending…" }));
  else if (message.tripMs !== undefined) {
    row.append(element("span", { className: "trip-note", text: `there and back in ${milliseconds(message.tripMs)}` }));
  }
  return row;
}

function renderMembers() {
  const members = [...state.members].sort(([, one], [, other]) => (one < other ? -1 : 1)).slice(0, MEMBERS_SHOWN_MAX);
  $("people-count").textContent = state.members.size || "";
  $("people").replaceChildren(...members.map(([id, name]) => element("li", {}, avatar(name),
    element("span", { text: name }), ...(id === state.me.id ? [element("em", { text: "you" })] : []))));
  $("faces").replaceChildren(...members.slice(0, 4).map(([, name]) => avatar(name)));
}

function renderTyping() {
  const names = [...state.typing.values()].map(({ name }) => name);
  const who = names.length > 2 ? "Several people are" : `${names.join(" and ")} ${names.length > 1 ? "are" : "is"}`;
  const dots = element("span", { className: "dots", "aria-hidden": "true" }, element("i"), element("i"), element("i"));
  $("typing").replaceChildren(...(names.length > 0 ? [dots, element("span", { text: `${who} typing` })] : []));
}

// A user at the end of the list sees new messages appear; for a user who has scrolled up, the position stays.
let atEnd = true;

function scrollToEnd() {
  atEnd = true;
  $("scroll").scrollTop = $("scroll").scrollHeight;
}

function scrolled() {
  const { scrollHeight, scrollTop, clientHeight } = $("scroll");
  atEnd = scrollHeight - scrollTop - clientHeight < NEAR_END_PX;
}

// ---- the live panel -----------------------------------------------------------------------------------------------

const PHASES = {
  connecting: { label: "Connecting" },
  connected: { label: "Connected" },
  reconnecting: {
    label: "Reconnecting",
    banner: "The connection is gone. The page tries again by itself; what you write now is sent when it is back.",
  },
  offline: {
    label: "Offline",
    banner: "This window is offline. What the others write now comes when it is back; what you write is sent then.",
  },
  refused: { label: "Refused", banner: "The server closed this connection for good. Reload to try again." },
};

function renderPhase() {
  const { label, banner } = PHASES[live.phase];
  document.body.dataset.phase = live.phase;
  $("state").textContent = label;
  $("short-state").textContent = label;
  $("banner").hidden = !banner;
  $("banner-text").textContent = banner ?? "";
  const isOffline = live.phase === "offline";
  $("banner-online").hidden = !isOffline;
  $("network").textContent = isOffline ? "Go online" : "Go offline";
  $("network").disabled = live.phase === "refused";
  if (live.phase !== "connected") gauge?.cancel();
}

function renderFigures() {
  const figures = {
    "count-messages": live.messages.toLocaleString(),
    "count-pings": live.pings.toLocaleString(),
    "count-in": bytes(live.bytesIn),
    "count-out": bytes(live.bytesOut),
    "count-subscriptions": live.subscriptions.size,
    "count-reconnects": live.reconnects,
    "count-resumed": live.resumed,
    "count-caught-up": live.caughtUp,
    "round-trip": live.trips.length > 0 ? milliseconds(live.trips.at(-1)) : "–",
  };
  for (const [id, text] of Object.entries(figures)) $(id).textContent = text;
  renderTrips();
  renderWire();
}

function renderTrips() {
  const slowest = Math.max(...live.trips, 1);
  const bars = live.trips.map((trip, index) => {
    const height = Math.max(2, (trip / slowest) * 32);
    const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    const box = { x: (TRIPS_SHOWN_MAX - live.trips.length + index) * 5, y: 34 - height, width: 3.4, height, rx: 1 };
    for (const [name, value] of Object.entries(box)) bar.setAttribute(name, value);
    return bar;
  });
  $("trips").replaceChildren(...bars);
}

function renderWire() {
  $("wire").replaceChildren(...live.wire.map(({ direction, what, channel, bytes: size }) =>
    element("li", { className: direction },
      element("span", { className: "arrow", text: direction === "in" ? "←" : "→", "aria-label": direction }),
      element("span", { className: "what", text: what }),
      element("span", { className: "channel", text: (channel ?? "").replace(/Channel$/, "") }),
      element("span", { className: "size", text: bytes(size) }))));
}

let gauge;

// The ring empties until the time when the client would treat the connection as lost; each ping fills it again.
function pinged() {
  const ring = $("gauge");
  const around = 2 * Math.PI * ring.r.baseVal.value;
  gauge?.cancel();
  gauge = ring.animate([{ strokeDashoffset: 0 }, { strokeDashoffset: around }], { duration: STALE_MS, fill: "forwards" });
}

function renderPingAge() {
  const seconds = live.pingedAt === null ? null : (performance.now() - live.pingedAt) / 1000;
  $("ping-age").textContent = seconds === null ? "no ping yet" : `last ping ${seconds.toFixed(seconds < 60 ? 1 : 0)} s ago`;
}

function bytes(count) {
  if (count < 1000) return `${count} B`;
  if (count < 1e6) return `${(count / 1e3).toFixed(1)} kB`;
  return `${(count / 1e6).toFixed(1)} MB`;
}

const milliseconds = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;

// In a narrow window a button opens the panel: beside the chat, or over the messages when there is no room beside.
const OVER_THE_MESSAGES = matchMedia("(max-width: 900px)");
const livePanelIsOpen = () => document.body.classList.contains("live-open");
const livePanelIsOver = () => livePanelIsOpen() && OVER_THE_MESSAGES.matches;

function showLivePanel(open) {
  document.body.classList.toggle("live-open", open);
  $("toggle-live").setAttribute("aria-expanded", open);
  placeLivePanel();
}

// The panel covers only the messages: the button, the banner and the composer stay reachable.
function placeLivePanel() {
  const { top, right, bottom, left } = $("scroll").getBoundingClientRect();
  const edges = { top, right: innerWidth - right, bottom: innerHeight - bottom, left };
  for (const [edge, pixels] of Object.entries(edges)) document.body.style.setProperty(`--messages-${edge}`, `${pixels}px`);
}

// ---- wiring -------------------------------------------------------------------------------------------------------

live.addEventListener("phase", renderPhase);
live.addEventListener("ping", pinged);
let figuresAreDue = false;
live.addEventListener("change", () => {
  // At most once per frame, however many messages come.
  if (figuresAreDue) return;
  figuresAreDue = true;
  requestAnimationFrame(() => { figuresAreDue = false; renderFigures(); });
});
setInterval(renderPingAge, 200);
setInterval(() => roomSubscriptions.presence?.perform("refresh"), PRESENCE_REFRESH_MS);

$("scroll").addEventListener("scroll", scrolled, { passive: true });
new ResizeObserver(() => {
  if (atEnd) scrollToEnd();
  placeLivePanel();
}).observe($("scroll"));

const text = $("composer-text");
$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const body = text.value.trim();
  if (body === "" || state.currentId === null) return;
  text.value = "";
  text.style.height = "";
  stopTyping();
  speak(body);
});
text.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("composer").requestSubmit();
  }
});
text.addEventListener("input", () => {
  text.style.height = "auto";
  text.style.height = `${text.scrollHeight}px`;
  typed();
});
$("second-window").addEventListener("click", () => {
  const taken = [state.me.name, ...state.members.values()];
  const url = `/?name=${encodeURIComponent(suggestName(taken))}`;
  window.open(url, "_blank", "popup,noopener,width=1180,height=800");
});
$("change-name").addEventListener("click", async () => {
  const name = await askForName(state.me.name);
  if (name === null || name === state.me.name) return;
  location.assign(`/?name=${encodeURIComponent(name)}`);
});
$("network").addEventListener("click", () => (live.offline ? cable.goOnline() : cable.goOffline()));
$("banner-online").addEventListener("click", () => {
  cable.goOnline();
  // The button goes away, so the focus moves to where one writes.
  text.focus();
});
$("toggle-live").addEventListener("click", () => showLivePanel(!livePanelIsOpen()));
// A tap beside the panel closes it and also has its normal effect: for example, the composer gets the cursor at once.
document.addEventListener("pointerdown", ({ target }) => {
  if (livePanelIsOver() && !target.closest("#live, #toggle-live")) showLivePanel(false);
});
document.addEventListener("keydown", ({ key }) => {
  // While the dialog is open, Escape closes the dialog and not the panel.
  if (key !== "Escape" || $("join").open || !livePanelIsOpen()) return;
  showLivePanel(false);
  $("toggle-live").focus();
});

renderPhase();
start(await chooseName());
text.focus();
