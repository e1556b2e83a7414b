// Runs in the browser: event streams, and what came by them.

const TYPES = ["message", "welcome", "confirm_subscription", "confirm_history", "reject_history", "ping", "disconnect", "presence", "typed"];
const STATES = ["connecting", "open", "closed"];
const streams = new Map();

window.events = {
  open(name, url) {
    const source = new EventSource(url);
    const entry = { events: [], state: () => STATES[source.readyState] };
    for (const type of TYPES) source.addEventListener(type, ({ data, lastEventId }) => entry.events.push({ type, data, id: lastEventId }));
    for (const type of ["open", "error"]) source.addEventListener(type, () => entry.events.push({ type }));
    streams.set(name, entry);
  },

  async post(name, url, body) {
    const answer = await fetch(url, { method: "POST", body });
    const entry = { events: [], state: () => answer.status };
    streams.set(name, entry);
    read(answer.body.pipeThrough(new TextDecoderStream()).getReader(), entry);
  },

  look(name) {
    const { events, state } = streams.get(name);
    return { events, state: state() };
  },
};

/** A parser of event streams for what the server sends: no comments, and line feeds alone. */
async function read(reader, entry) {
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (text + value).split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const fields = block.split("\n").map((field) => field.split(/: ?(.*)/, 2));
      const valuesOf = (name) => fields.filter(([key]) => key === name).map(([, content]) => content);
      entry.events.push({ type: valuesOf("event")[0] ?? "message", data: valuesOf("data").join("\n"), id: valuesOf("id")[0] });
    }
  }
}
