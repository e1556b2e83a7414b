// What the doubles of apps share: bodies of requests, and broadcasts.

import { derivedKey } from "./server.js";

export async function bodyOf(request) {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  return Buffer.concat(chunks).toString();
}

/** As the Ruby adapter does it: a new connection each time. Resolves with the status. */
export async function broadcast(port, body) {
  const answer = await fetch(`http://127.0.0.1:${port}/_broadcast`, {
    method: "POST",
    headers: {
      "Content-Type": "application/json",
      Authorization: `Bearer ${derivedKey("broadcast-cable")}`,
      Connection: "close",
    },
    body: JSON.stringify(body),
  });
  return answer.status;
}
