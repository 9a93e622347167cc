// Handshakes: how a page carries its token, and what it learns of the answer.

import { login, logout } from "./gate.js";

const holders = new Set();

// dial starts a WebSocket. A choice is the token, how it is carried (carrier)
// and the path (door). The browser sends a cookie by itself, see carrying.
export function dial({ token, carrier, door }) {
  const url = new URL(door, location.href);
  url.protocol = url.protocol.replace("http", "ws");
  url.search = carrier === "query" ? `?access_token=${encodeURIComponent(token)}` : "";
  url.hash = "";
  // The gate takes the token out; demo.v1 is what the backend chooses.
  const socket = new WebSocket(url, carrier === "subprotocol" ? ["bearer", token, "demo.v1"] : ["demo.v1"]);
  socket.binaryType = "arraybuffer";
  return socket;
}

// settled waits until it is clear what came of a handshake: the backend's
// greeting, or null if the socket closed without one. An open socket alone
// says little: with on_reject close, the refusal comes after it.
export function settled(socket) {
  return new Promise((resolve) => {
    socket.addEventListener("message", (event) => resolve(greeting(event.data)), { once: true });
    socket.addEventListener("close", () => resolve(null), { once: true });
  });
}

export function greeting(message) {
  try {
    const said = JSON.parse(message);
    return said.type === "hello" ? said : null;
  } catch {
    return null;
  }
}

// carrying has the browser hold the token in a cookie while work goes on, if
// that is the carrier. A cookie goes along with every request from here, and
// with two tokens in one the gate would answer 400: so it stays no longer.
export async function carrying({ token, carrier }, work) {
  if (carrier !== "cookie") return work();
  const mine = {};
  holders.add(mine);
  try {
    await login(token);
    return await work();
  } finally {
    holders.delete(mine);
    if (holders.size === 0) await logout().catch(() => {});
  }
}

// plain makes the same request without WebSocket. The gate holds it to the
// same rules but for caps, and of its answer a browser hides nothing. (A
// page cannot offer subprotocols there: that token goes as Authorization.)
export async function plain({ token, carrier, door }) {
  const headers = carrier === "subprotocol" ? { Authorization: `Bearer ${token}` } : {};
  const query = carrier === "query" ? `?access_token=${encodeURIComponent(token)}` : "";
  try {
    return await fetch(door + query, { headers, cache: "no-store" });
  } catch {
    return null;
  }
}

// claims reads the middle part of a token. Only the gate can tell whether it
// is true.
export function claims(token) {
  try {
    const part = token.split(".")[1].replace(/-/g, "+").replace(/_/g, "/");
    const bytes = Uint8Array.from(atob(part), (c) => c.charCodeAt(0));
    return JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    return null;
  }
}
