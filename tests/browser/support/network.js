// The network of one window, by the browser's own devtools protocol.

const UNLIMITED = { latency: 0, downloadThroughput: -1, uploadThroughput: -1 };

export class Network {
  static async of(page) {
    const network = new Network();
    network.session = await page.context().newCDPSession(page);
    await network.session.send("Network.enable");
    return network;
  }

  offline() {
    return this.session.send("Network.emulateNetworkConditions", { offline: true, ...UNLIMITED });
  }

  online() {
    return this.session.send("Network.emulateNetworkConditions", { offline: false, ...UNLIMITED });
  }
}
