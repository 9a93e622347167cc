// The demo's page: makes tokens, opens a WebSocket with one, and shows what
// comes of it. No framework, no build step, no other host.
"use strict";

const $ = (id) => document.getElementById(id);

let socket = null;

// --- 1. the token -----------------------------------------------------------

$("token-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  await makeToken();
});
$("token").addEventListener("input", showToken);

async function makeToken() {
  const response = await fetch("idp/token", {
    method: "POST",
    body: new URLSearchParams(new FormData($("token-form"))),
  });
  const text = (await response.text()).trim();
  if (!response.ok) {
    say("bad", text);
    return;
  }
  $("token").value = text;
  showToken();
}

const token = () => $("token").value.trim();

// claims reads the middle part. Only the gate can tell whether it is true.
function claims() {
  try {
    const part = token().split(".")[1].replace(/-/g, "+").replace(/_/g, "/");
    const bytes = Uint8Array.from(atob(part), (c) => c.charCodeAt(0));
    return JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    return null;
  }
}

function showToken() {
  const c = claims();
  $("claims").textContent = c ? JSON.stringify(c, null, 2) : "nothing that can be read";
  showExpiry();
}

function say(state, text) {
  $("expiry").dataset.state = state;
  $("expiry").textContent = text;
}

function showExpiry() {
  const exp = claims()?.exp;
  if (typeof exp !== "number") {
    say("", "");
    return;
  }
  const left = Math.ceil(exp - Date.now() / 1000);
  if (left <= 0) {
    say("bad", `Expired ${duration(-left)} ago.`);
  } else if (socket?.readyState === WebSocket.OPEN && socket.token === token()) {
    say("", `Expires in ${duration(left)}; the gate closes the socket then.`);
  } else {
    say("", `Expires in ${duration(left)}.`);
  }
}

function duration(seconds) {
  if (seconds < 60) return `${seconds} s`;
  const two = (n) => String(n).padStart(2, "0");
  const h = Math.floor(seconds / 3600), m = Math.floor(seconds / 60) % 60;
  return h ? `${h}:${two(m)}:${two(seconds % 60)}` : `${m}:${two(seconds % 60)}`;
}

// --- 2. the connection ------------------------------------------------------

$("connect-form").addEventListener("submit", (event) => {
  event.preventDefault();
  connect(new FormData(event.target).get("carrier"));
});
$("disconnect").addEventListener("click", () => socket?.close(1000, "bye"));

function connect(carrier) {
  if (carrier !== "none" && !token()) {
    show("refused", "There is no token yet: make one first.");
    return;
  }
  const url = new URL("ws", location.href);
  url.protocol = url.protocol.replace("http", "ws");
  let protocols = ["demo.v1"];
  if (carrier === "query") url.searchParams.set("access_token", token());
  if (carrier === "subprotocol") protocols = ["bearer", token(), "demo.v1"];

  try {
    socket = new WebSocket(url, protocols);
  } catch (error) {
    show("refused", `The browser will not send that: ${error.message}`);
    return;
  }
  const s = socket;
  s.binaryType = "arraybuffer";
  s.token = token();
  s.carrier = carrier;
  show("idle", "Connecting …");
  identity(null);
  buttons();

  s.onopen = () => {
    s.opened = true;
    show("open", `101: open, subprotocol ${s.protocol || "none"}.`);
    buttons();
  };
  s.onmessage = (event) => receive(event.data);
  s.onclose = async (event) => {
    buttons();
    showExpiry();
    if (s.opened) {
      show(event.code === 1000 ? "idle" : "closed", `Closed with ${event.code}${event.reason ? `: ${event.reason}` : ""}.`);
      log("·", `closed ${event.code} ${event.reason}`);
    } else {
      show("refused", await whyRefused(s));
    }
  };
}

// whyRefused asks the same door with a plain request: browsers hide the answer
// to a handshake (WebSocket API: "must not be able to distinguish"), and the
// gate holds plain requests to the same rules.
async function whyRefused(s) {
  const headers = s.carrier === "none" ? {} : { Authorization: `Bearer ${s.token}` };
  try {
    const response = await fetch("ws", { headers, cache: "no-store" });
    const challenge = response.headers.get("WWW-Authenticate");
    if (response.status === 401 || response.status === 403 || response.status === 429 || response.status === 503) {
      return `Refused with ${response.status}${challenge ? ` (${challenge})` : ""}.`;
    }
    return `The handshake failed; a plain request gets ${response.status}.`;
  } catch {
    return "Nobody answers: is the quickstart still running?";
  }
}

function show(state, text) {
  $("result").dataset.state = state;
  $("result").textContent = text;
}

function identity(told) {
  const rows = told ? Object.entries(told.identity).sort() : [];
  if (told) rows.push(["Saw the token", told.saw_token ? "yes" : "no, the gate keeps it"]);
  $("identity").replaceChildren(...(rows.length ? rows : [["nothing yet", ""]]).flatMap(([name, value]) => [
    Object.assign(document.createElement("dt"), { textContent: name }),
    Object.assign(document.createElement("dd"), { textContent: value }),
  ]));
}

function buttons() {
  const open = socket?.readyState === WebSocket.OPEN;
  const busy = open || socket?.readyState === WebSocket.CONNECTING;
  $("connect").disabled = busy;
  $("disconnect").disabled = !open;
  for (const button of $("talk-form").querySelectorAll("button")) button.disabled = !open;
}

// --- 3. messages ------------------------------------------------------------

$("talk-form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (socket?.readyState !== WebSocket.OPEN) return;
  socket.send($("text").value);
  log("→", $("text").value);
});
$("binary").addEventListener("click", () => {
  const bytes = crypto.getRandomValues(new Uint8Array(64));
  socket.send(bytes);
  log("→", hex(bytes));
});

function receive(message) {
  if (typeof message !== "string") {
    log("←", hex(new Uint8Array(message)));
    return;
  }
  log("←", message);
  try {
    const told = JSON.parse(message);
    if (told.type === "hello") identity(told);
  } catch {
    // an echo
  }
}

const hex = (bytes) => `${bytes.length} bytes: ${Array.from(bytes.slice(0, 16), (b) => b.toString(16).padStart(2, "0")).join(" ")} …`;

function log(direction, text) {
  const line = document.createElement("li");
  const time = Object.assign(document.createElement("span"), { className: "time", textContent: `${new Date().toLocaleTimeString()} ` });
  line.append(time, `${direction} ${text}`);
  const box = $("log");
  box.append(line);
  while (box.childElementCount > 200) box.firstChild.remove();
  box.scrollTop = box.scrollHeight;
}

setInterval(showExpiry, 1000);
showToken();
