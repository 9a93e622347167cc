// The client's side: makes a token, opens a WebSocket with it, and shows what
// comes of it. No framework, no build step, no other host.

import { $, aside, duration, element, enable, facts, result, write } from "./dom.js";
import { counted, mint, since, statuses } from "./gate.js";
import { carrying, claims, dial, greeting, plain, settled } from "./handshake.js";
import { startCap } from "./cap.js";
import { look, startOperator } from "./operator.js";

// --- 1. the token ------------------------------------------------------------

const token = () => $("token").value.trim();

// minting is the token under way, so that who connects meanwhile gets it, and
// minted the last one, as against one that was pasted.
let minting = Promise.resolve();
let minted = "";

function makeToken() {
  minting = mint(new FormData($("token-form"))).then(
    (made) => { $("token").value = minted = made; showToken(); },
    (error) => { $("token-note").dataset.state = "bad"; write($("token-note"), error.message); },
  );
  return minting;
}

// fresh replaces a good token that ran out meanwhile, as any client would do
// before it connects.
async function fresh() {
  await minting;
  const good = new FormData($("token-form")).get("bad") === "";
  if (good && token() === minted && claims(minted)?.exp <= Date.now() / 1000) await makeToken();
}

function showToken() {
  const said = claims(token());
  write($("claims"), said ? JSON.stringify(said, null, 2) : "nothing that can be read");
  tick();
}

// --- 2. the connection -------------------------------------------------------

// current is the page's one socket and what is known of it.
let current = null;

// choice is what the forms say now.
async function choice() {
  await fresh();
  const form = new FormData($("connect-form"));
  return { token: token(), carrier: form.get("carrier"), door: form.get("door") };
}

async function connect() {
  enable($("connect"), false);
  const chosen = await choice();
  begin(chosen);
  try {
    const before = await counted();
    await carrying(chosen, () => handshake(chosen, before));
  } catch (error) {
    show("refused", error.message);
  }
  buttons();
  look();
}

function begin({ carrier }) {
  current = null;
  facts($("evidence"), []);
  $("told").hidden = true;
  show("connecting", "Connecting …");
  way(carrier === "none" ? "no token" : { subprotocol: "as subprotocol", query: "in the query", cookie: "in a cookie" }[carrier], "checks", "waits");
  tick();
}

async function handshake(chosen, before) {
  const socket = dial(chosen);
  const mine = { socket, chosen, said: claims(chosen.token), let: false };
  current = mine;
  socket.addEventListener("message", (event) => receive(event.data));
  socket.addEventListener("close", (event) => {
    mine.closed = event;
    if (mine.let) closed(event);
  });
  const told = await settled(socket);
  if (told) {
    mine.let = true;
    letIn(mine, told);
  } else {
    await refused(mine, before);
  }
}

function letIn({ socket, chosen }, told) {
  way(null, "101, let in", `knows ${told.identity["X-User-Id"] ?? "nobody"}`);
  show("open", `Connected: 101 Switching Protocols, subprotocol ${socket.protocol || "none"}.`);
  facts($("identity"), [
    ...Object.entries(told.identity).sort(),
    ["The token", told.saw_token ? "came through: that is a bug" : "never came through"],
    ["Carried", chosen.carrier],
  ]);
  $("told").hidden = false;
  current.id = told.connection;
  tick();
}

// refused gathers what can be known of a handshake that came to nothing: the
// browser hides the answer's status from pages, so the gate's counter and the
// same request without WebSocket tell the rest.
async function refused({ chosen, closed: { code, reason } }, before) {
  const counts = (await since(before)).filter(([name]) => name !== "accepted");
  const why = counts.length === 1 ? counts[0][0] : "";
  const answer = await plain(chosen);
  const challenge = answer?.headers.get("WWW-Authenticate");
  const status = why ? statuses[why] : answer?.status;
  way(null, code === 1006 ? `${status ?? "no"}, refused` : `101, then ${code}`, "never heard of it");
  show("refused", code === 1006
    ? "Refused with an HTTP status. The browser tells the page only 1006; the lines below tell the rest."
    : `Refused with close code ${code}, “${reason}”, which a page can read.`);
  facts($("evidence"), [
    ["What the browser tells the page", code === 1006 ? "1006, no reason" : `${code}, ${reason}`],
    ["What the gate counted", why ? `${why}, which stands for ${statuses[why] ?? "a refusal"}` : counts.map(([name, n]) => `${n} ${name}`).join(", ") || "nothing"],
    ["The same URL without WebSocket", !answer ? "no answer" : answer.ok
      ? `${answer.status}: the token is good, and caps count sockets only`
      : `${answer.status} ${answer.statusText}${challenge ? `, WWW-Authenticate: ${challenge}` : ""}`],
  ]);
}

// advice is what a client does after the close codes that end a live socket.
const advice = {
  1008: "do not come back unasked",
  1012: "the gate stops, connect again later",
  1014: "the backend is gone, connect again later",
  3000: "get a new token, then connect again",
  3008: "no sign of life, connect again",
};

function closed({ code, reason }) {
  way(null, code === 1000 ? "saw it close" : `closed it: ${code}`, "was told goodbye");
  show(code === 1000 ? "idle" : "closed", `Closed with ${code}${reason ? `, “${reason}”` : ""}${advice[code] ? `: ${advice[code]}` : ""}.`);
  log("closed", `closed with ${code}${reason ? `, ${reason}` : ""}`);
  tick();
  buttons();
  look();
}

// way writes what happened at each of the three stations; null leaves one.
function way(browser, gate, backend) {
  for (const [id, text] of [["at-browser", browser], ["at-gate", gate], ["at-backend", backend]]) {
    if (text !== null) write($(id), text);
  }
}

function show(state, text) {
  $("path").dataset.state = state;
  result($("result"), state, text);
  const mark = { open: "● in · ", refused: "✕ refused · ", closed: "✕ closed · " }[state] ?? "";
  document.title = `${mark}wsgate quickstart`; // tells many tabs apart
}

function buttons() {
  const state = current?.socket.readyState;
  const open = state === WebSocket.OPEN && current.let;
  enable($("connect"), state !== WebSocket.OPEN && state !== WebSocket.CONNECTING);
  for (const id of ["disconnect", "send", "binary"]) enable($(id), open);
}

// tick counts down, for the token of step 1 and for that of the live socket.
function tick() {
  const now = Date.now() / 1000;
  const note = $("token-note"), exp = claims(token())?.exp;
  note.dataset.state = exp <= now ? "bad" : "";
  write(note, typeof exp !== "number" ? "" : exp <= now ? `Expired ${duration(now - exp)} ago.` : `Expires in ${duration(exp - now)}.`);

  const said = current?.socket.readyState === WebSocket.OPEN && current.let ? current.said : null;
  $("life").hidden = !said?.exp;
  if ($("life").hidden) return;
  const left = Math.max(0, said.exp - now);
  write($("countdown"), `The token of this socket expires in ${duration(left)}. The gate closes it then, with 3000.`);
  $("time-left").max = said.exp - said.iat;
  $("time-left").value = left;
}

// --- 3. messages -------------------------------------------------------------

function send(message) {
  if (current?.socket.readyState !== WebSocket.OPEN) return;
  current.socket.send(message);
  log("sent", readable(message));
}

function receive(message) {
  log("received", readable(greeting(message) ? "greeting: who the backend was told you are" : message));
}

function readable(message) {
  if (typeof message === "string") return message;
  const bytes = new Uint8Array(message);
  return `${bytes.length} bytes: ${Array.from(bytes.slice(0, 12), (b) => b.toString(16).padStart(2, "0")).join(" ")} …`;
}

function log(kind, text) {
  const box = $("log");
  box.append(element("li", { className: kind },
    element("time", {}, new Date().toLocaleTimeString([], { hour12: false })),
    aside(kind === "closed" ? " " : ` ${kind} `), element("span", { className: "said" }, text)));
  while (box.childElementCount > 200) box.firstChild.remove();
  box.scrollTop = box.scrollHeight;
  $("log-empty").hidden = true;
}

// --- the page's address ------------------------------------------------------

// Another tab is told by its address what to do. Tokens are not in it.
function address() {
  const all = new URLSearchParams([...new FormData($("token-form")), ...new FormData($("connect-form"))]);
  return `?${all}&connect`;
}

function fromAddress() {
  for (const [name, value] of new URLSearchParams(location.search)) {
    for (const field of document.querySelectorAll(`[name="${CSS.escape(name)}"]`)) {
      if (field.type === "radio") field.checked = field.value === value;
      else if (field.tagName !== "SELECT" || [...field.options].some((o) => o.value === value)) field.value = value;
    }
  }
}

// --- what starts it ----------------------------------------------------------

const onSubmit = (id, act) => $(id).addEventListener("submit", (event) => { event.preventDefault(); act(); });

onSubmit("token-form", makeToken);
onSubmit("connect-form", connect);
onSubmit("talk-form", () => send($("text").value));
$("token-form").addEventListener("change", (event) => { if (event.target !== $("token")) makeToken(); });
$("token").addEventListener("input", showToken);
$("disconnect").addEventListener("click", () => current?.socket.close(1000, "bye"));
$("binary").addEventListener("click", () => send(crypto.getRandomValues(new Uint8Array(64))));
$("another").addEventListener("click", () => { $("another").href = address(); });

fromAddress();
startCap(choice);
startOperator({ mine: () => current?.id, token });
setInterval(tick, 500);
await makeToken();
if (new URLSearchParams(location.search).has("connect")) await connect();
