// Runs in the browser: one consumer of the library under test, and what happened to its subscriptions.

const { library } = document.querySelector("script[data-library]").dataset;

async function makeConsumer() {
  if (library === "turbo") {
    const { cable } = await import("/lib/turbo.js");
    return cable.getConsumer();
  }
  const { createConsumer } = await import("/lib/actioncable.js");
  return createConsumer();
}

const subscriptions = new Map();

window.campfire = {
  consumer: await makeConsumer(),

  subscribe(name, params) {
    const entry = { connected: 0, disconnected: 0, rejected: 0, received: [] };
    const callbacks = {
      connected: () => { entry.connected += 1; },
      disconnected: () => { entry.disconnected += 1; },
      rejected: () => { entry.rejected += 1; },
      received: (message) => entry.received.push(message),
    };
    entry.subscription = window.campfire.consumer.subscriptions.create(params, callbacks);
    subscriptions.set(name, entry);
  },

  unsubscribe: (name) => subscriptions.get(name).subscription.unsubscribe(),
  perform: (name, action) => subscriptions.get(name).subscription.perform(action),

  // Plain data, so that the test can take it out of the page.
  look() {
    const entries = [...subscriptions].map(([name, { subscription, ...rest }]) => [name, rest]);
    const { connection } = window.campfire.consumer;
    return {
      subscriptions: Object.fromEntries(entries),
      open: connection.isOpen(),
      retrying: Boolean(connection.monitor.isRunning()),
      protocol: connection.getProtocol(),
    };
  },
};
window.campfireReady = true;
