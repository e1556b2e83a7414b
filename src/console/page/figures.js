// Turns snapshots (the counters as they are) into figures: rates, percentiles, bytes per connection. Does not touch the
// page.

export const SECONDS_SHOWN = 60;
const RPC_WINDOW = 10; // Snapshots whose calls are counted together.
const SESSIONS_MIN = 1000; // With fewer sessions the figure would mostly show the process itself.

const sumOf = (shards, name) => shards.reduce((sum, shard) => sum + shard[name], 0);

export class History {
  samples = [];
  #snapshots = [];

  add(snapshot) {
    const previous = this.#snapshots.at(-1);
    // A new process: its counters begin at zero.
    if (previous && (snapshot.node !== previous.node || snapshot.uptime_secs < previous.uptime_secs)) {
      this.#snapshots = [];
      this.samples = [];
    }
    this.#snapshots = [...this.#snapshots, snapshot].slice(-(RPC_WINDOW + 1));
    const sample = sampleOf(snapshot, this.#snapshots.at(-2), this.#snapshots[0]);
    this.samples = [...this.samples, sample].slice(-(SECONDS_SHOWN + 1));
  }
}

function sampleOf(snapshot, previous, windowStart) {
  const { shards, rpc } = snapshot;
  const seconds = previous ? (snapshot.now_ms - previous.now_ms) / 1000 : 0;
  // Without an earlier snapshot there is no rate, which is different from a rate of zero.
  const rate = (now, before) => (seconds > 0 ? Math.max(0, now - before) / seconds : null);
  const total = (name) => rate(sumOf(shards, name), previous ? sumOf(previous.shards, name) : 0);
  const sessions = sumOf(shards, "sessions");
  const calls = rpc && windowStart.rpc ? rpc.ran.map((count, bucket) => count - windowStart.rpc.ran[bucket]) : [];
  return {
    at: snapshot.now_ms,
    sessions,
    streams: snapshot.streams,
    users: snapshot.users,
    deliveries: total("deliveries"),
    publications: total("publications"),
    messages: total("messages"),
    sentBytes: total("sent_bytes"),
    accepted: total("accepted"),
    memory: snapshot.private_bytes,
    perSession: sessions >= SESSIONS_MIN ? Math.max(0, snapshot.private_bytes - snapshot.private_bytes_at_start) / sessions : null,
    median: percentile(calls, rpc?.bounds_us, 0.5),
    slowest: percentile(calls, rpc?.bounds_us, 0.99),
    calls: rpc ? rate(rpc.calls, previous?.rpc?.calls ?? 0) : null,
    failures: rpc ? rate(rpc.errors, previous?.rpc?.errors ?? 0) : null,
    pending: rpc?.pending ?? null,
    ...brokerFigures(snapshot.broker, (name) => rate(snapshot.broker[name], previous?.broker?.[name] ?? 0)),
    shards: shards.map((shard, id) => ({
      sessions: shard.sessions,
      deliveries: rate(shard.deliveries, previous?.shards[id]?.deliveries ?? 0),
      messages: rate(shard.messages, previous?.shards[id]?.messages ?? 0),
      outbox: shard.outbox_bytes,
      inbox: shard.inbox_depth,
      slow: shard.slow,
    })),
  };
}

// All null without a broker.
function brokerFigures(broker, rateOf) {
  const now = (name) => (broker ? broker[name] : null);
  const perSecond = (name) => (broker ? rateOf(name) : null);
  return {
    held: now("bytes"),
    heldMax: now("bytes_max"),
    stored: now("messages"),
    knownStreams: now("streams"),
    members: now("members"),
    keptSessions: now("sessions"),
    restored: perSecond("restored"),
    notRestored: perSecond("not_restored"),
    replayed: perSecond("replayed"),
    answered: perSecond("answered"),
    refused: perSecond("refused"),
    evicted: perSecond("evicted"),
    evictedInAll: now("evicted"),
    evictedSessions: now("evicted_sessions"),
  };
}

// The time in milliseconds within which `part` of the calls ended, interpolated inside the buckets; null without calls.
export function percentile(counts, boundsMicros, part) {
  const wanted = counts.reduce((sum, count) => sum + count, 0) * part;
  if (!(wanted > 0)) return null;
  let below = 0;
  for (const [bucket, count] of counts.entries()) {
    if (below + count >= wanted) {
      const low = bucket === 0 ? 0 : boundsMicros[bucket - 1];
      // The last bucket has no upper bound, so its lower bound is all that is known.
      const high = boundsMicros[bucket] ?? low;
      return (low + ((high - low) * (wanted - below)) / count) / 1000;
    }
    below += count;
  }
  return null;
}

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const two = new Intl.NumberFormat("en", { maximumSignificantDigits: 2 });
const tenths = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });

export const count = (value) => (value === null ? "–" : value >= 1e6 ? compact.format(value) : whole.format(value));

export function rateText(value) {
  if (value === null) return "–";
  return value >= 100_000 ? compact.format(value) : value >= 10 ? whole.format(value) : tenths.format(value);
}

export function bytes(value) {
  if (value === null) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${short.format(value)} ${units[unit]}`;
}

export function millis(value) {
  if (value === null) return "–";
  // Two digits: a third one is noise and does not fit into its card. From 100 ms on, whole milliseconds.
  const digits = (number) => (number >= 100 ? whole : two).format(number);
  return value >= 1000 ? `${digits(value / 1000)} s` : `${digits(value)} ms`;
}

export function duration(seconds) {
  const parts = [[Math.floor(seconds / 86_400), "d"], [Math.floor(seconds / 3600) % 24, "h"], [Math.floor(seconds / 60) % 60, "min"]];
  const shown = parts.filter(([value]) => value > 0).slice(0, 2);
  return shown.length > 0 ? shown.map(([value, unit]) => `${value} ${unit}`).join(" ") : `${seconds} s`;
}

export const clock = (unixMs) => new Date(unixMs).toLocaleTimeString("en-GB");
