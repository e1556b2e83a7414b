// Real proxies as Debian packages them, each with the configuration that an operator would write.

import { spawn } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { freePort } from "../../browser/support/server.js";
import { until } from "../../browser/support/until.js";

const READY_MS = 15_000;

class Proxy {
  static async start({ cablePort, appUrl }) {
    const proxy = new this();
    proxy.port = await freePort();
    proxy.folder = await mkdtemp(join(tmpdir(), "ringcable-proxy-"));
    const file = join(proxy.folder, "proxy.conf");
    await writeFile(file, this.configuration({ port: proxy.port, cablePort, appUrl, folder: proxy.folder }));
    const [program, ...args] = this.command(file);
    proxy.output = "";
    // Caddy keeps its state under HOME.
    proxy.process = spawn(program, args, { env: { ...process.env, HOME: proxy.folder }, stdio: ["ignore", "pipe", "pipe"] });
    proxy.exited = new Promise((resolve) => proxy.process.once("exit", resolve));
    for (const stream of [proxy.process.stdout, proxy.process.stderr]) stream.on("data", (data) => { proxy.output += data; });
    proxy.process.once("error", (error) => { proxy.output += error.message; });
    const answers = async () => {
      if (proxy.process.exitCode !== null) throw new Error(`${program} exited with ${proxy.process.exitCode}:\n${proxy.output}`);
      return fetch(`http://127.0.0.1:${proxy.port}/`).then(() => true, () => false);
    };
    await until(`${program} answers`, answers, READY_MS);
    return proxy;
  }

  async stop() {
    this.process.kill("SIGKILL");
    await this.exited;
    await rm(this.folder, { recursive: true, force: true });
  }
}

export class Caddy extends Proxy {
  static command = (file) => [process.env.CADDY_BIN ?? "caddy", "run", "--adapter", "caddyfile", "--config", file];

  /** The block from Campfire's documentation, and around it what keeps a test off the machine's other ports. */
  static configuration = ({ port, cablePort, appUrl }) => `
{
  admin off
  auto_https off
}
http://127.0.0.1:${port} {
  handle /cable {
    reverse_proxy 127.0.0.1:${cablePort}
  }
  handle {
    reverse_proxy ${appUrl.replace("http://", "")}
  }
}
`;

  /** Caddy trusts nobody by default: it replaces what the client claims. */
  static forwardedFor = () => "127.0.0.1";
}

export class Nginx extends Proxy {
  static command = (file) => [process.env.NGINX_BIN ?? "nginx", "-c", file, "-g", "daemon off;"];

  static configuration = ({ port, cablePort, appUrl, folder }) => `
pid ${folder}/nginx.pid;
error_log stderr warn;
master_process off;
events {}
http {
  access_log off;
  client_body_temp_path ${folder}/body;
  proxy_temp_path ${folder}/proxy;
  fastcgi_temp_path ${folder}/fastcgi;
  uwsgi_temp_path ${folder}/uwsgi;
  scgi_temp_path ${folder}/scgi;
  server {
    listen 127.0.0.1:${port};
    location = /cable {
      proxy_pass http://127.0.0.1:${cablePort};
      proxy_http_version 1.1;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection "upgrade";
      proxy_set_header Host $http_host;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header X-Forwarded-Proto $scheme;
    }
    location / {
      proxy_pass ${appUrl};
    }
  }
}
`;

  /** `$proxy_add_x_forwarded_for` appends the peer to what the client claims. */
  static forwardedFor = (claimed) => `${claimed}, 127.0.0.1`;
}

export const PROXIES = [Caddy, Nginx];
