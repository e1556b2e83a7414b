// Runs in the browser: one cable of the library under test, and what its channels were told.

import * as core from "@anycable/core";
import { start } from "@anycable/turbo-stream";
import * as web from "@anycable/web";

const { cable: url } = document.querySelector("script[data-cable]").dataset;
const LIBRARIES = { core, web };
// Not the client's waiting that grows with each attempt: a test has no time for it.
const RECONNECT_MS = 250;

const channels = new Map();
const events = [];
let cable;

function subscribed(channel) {
  const entry = { channel, messages: [], positions: [], events: [], infos: [], presence: [] };
  channel.on("message", (message, meta) => {
    entry.messages.push(message);
    entry.positions.push(meta);
  });
  channel.on("connect", ({ reconnect, restored }) => entry.events.push({ is: "connect", reconnect, restored }));
  channel.on("disconnect", ({ reason }) => entry.events.push({ is: "disconnect", reason }));
  channel.on("close", (error) => entry.events.push({ is: "close", reason: error?.reason }));
  channel.on("info", ({ type }) => entry.infos.push(type));
  channel.on("presence", (event) => entry.presence.push(event));
  return entry;
}

window.client = {
  /** `library` is "core" or "web"; `options` are those of its createCable. */
  connect(library, options) {
    const given = { protocol: "actioncable-v1-ext-json", reconnectStrategy: () => RECONNECT_MS, ...options };
    cable = LIBRARIES[library].createCable(url, given);
    cable.on("connect", ({ reconnect, restored }) => events.push({ is: "connect", reconnect, restored }));
    cable.on("disconnect", ({ reason }) => events.push({ is: "disconnect", reason }));
    cable.on("close", (error) => events.push({ is: "close", reason: error?.reason }));
  },

  async subscribe(name, { stream, signed, ...params }) {
    const channel = stream ? cable.streamFrom(stream) : signed ? cable.streamFromSigned(signed) : cable.subscribeTo("RoomChannel", params);
    channels.set(name, subscribed(channel));
    await channel.ensureSubscribed();
  },

  activateTurbo: (options) => start(cable, options),

  channel: (name) => channels.get(name).channel,

  // Plain data, so that the test can take it out of the page.
  look() {
    const entries = [...channels].map(([name, { channel, ...rest }]) => [name, { state: channel.state, ...rest }]);
    return { channels: Object.fromEntries(entries), events, state: cable.state, sid: cable.sessionId };
  },
};
