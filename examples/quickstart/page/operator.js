// The operator's side: what the admin API and the metrics tell, and what the
// admin API can do.

import { $, aside, duration, element, keep, result, several, write } from "./dom.js";
import { cap, closeSocket, closeUser, connections, counted, lift, revocations, revoke, say } from "./gate.js";
import { claims } from "./handshake.js";

// page is what the client's side lends: the id of its socket and its token.
let page;

export function startOperator(client) {
  page = client;
  $("say-form").addEventListener("submit", (event) => {
    event.preventDefault();
    act(async () => {
      const [user, issuer] = JSON.parse($("say-to").value || "[]");
      return `Sent to ${several(await say(user ? { user, issuer } : { all: true }, $("say-text").value), "socket")}.`;
    });
  });
  $("revoke-token").addEventListener("click", () => act(async () => {
    const { jti, iss } = claims(page.token()) ?? {};
    if (!jti) throw new Error("The token of step 1 has no jti to revoke it by.");
    return `Token revoked. ${several(await revoke({ jti, issuer: iss }), "socket")} closed with 3000.`;
  }));
  watch();
}

// act does something and tells what came of it.
async function act(work) {
  try {
    result($("operator-result"), "done", await work());
  } catch (error) {
    result($("operator-result"), "refused", error.message);
  }
  await look();
}

// look is for when something has just happened.
export const look = () => refresh().catch(() => {});

// watch looks again each second, while somebody looks at the page.
async function watch() {
  let lost = false;
  for (;;) {
    if (!document.hidden) {
      try {
        await refresh();
        if (lost) result($("operator-result"), "idle", "The gate answers again.");
        lost = false;
      } catch (error) {
        if (!lost) result($("operator-result"), "refused", error.message);
        lost = true;
      }
    }
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

// asked counts the looks: the answers to an older one come too late.
let asked = 0;

async function refresh() {
  const mine = ++asked;
  const [sockets, revoked, counts] = await Promise.all([connections(), revocations(), counted()]);
  if (mine !== asked) return;
  showCounts(sockets, counts);
  showUsers(sockets);
  showRevocations(revoked);
}

function showCounts(sockets, { results, pings }) {
  const no = Object.entries(results).filter(([name, n]) => name !== "accepted" && n > 0).sort();
  write($("live"), String(sockets.length));
  write($("pings"), String(pings));
  write($("refused"), String(no.reduce((sum, [, n]) => sum + n, 0)));
  write($("reasons"), no.length ? `Refused for: ${no.map(([name, n]) => `${name} ${n}`).join(", ")}.` : "");
}

// --- live sockets, by user ---------------------------------------------------

function showUsers(sockets) {
  const users = new Map();
  for (const socket of sockets) {
    const key = JSON.stringify([socket.user, socket.issuer]);
    if (!users.has(key)) users.set(key, { key, user: socket.user, issuer: socket.issuer, sockets: [] });
    users.get(key).sockets.push(socket);
  }
  const all = [...users.values()].sort((a, b) => (a.key < b.key ? -1 : 1));
  keep($("users"), all, (one) => one.key, { make: userCard, update: updateUser, heading: $("sockets-title") });
  $("nobody").hidden = all.length > 0;
  keep($("say-to"), [{ key: "", user: "everybody" }, ...all], (one) => one.key, {
    make: (one) => element("option", { value: one.key }, one.user), update() {}, heading: $("say-to"),
  });
}

function userCard({ key, user, issuer }) {
  const message = () => {
    $("say-to").value = key;
    $("say-text").focus();
    $("say-text").select();
  };
  const closeAll = () => act(async () => `Closed ${several(await closeUser({ user, issuer }), "socket")} of ${user}.`);
  const revokeUser = () => act(async () => `${user} is revoked. ${several(await revoke({ user, issuer }), "socket")} closed with 3000.`);
  return element("li", {},
    element("div", { className: "user" },
      element("b", { className: "name" }, user),
      element("meter", { max: cap, high: cap - 1, optimum: 0, title: "sockets of the cap" }),
      element("span", { className: "count" })),
    element("div", { className: "buttons" },
      button("Message", `to ${user}`, message),
      button("Close all", `of ${user}`, closeAll),
      button("Revoke", `user ${user}`, revokeUser, "danger")),
    element("ul", { className: "sockets" }));
}

function updateUser(card, { user, sockets }) {
  const meter = card.querySelector("meter");
  meter.value = sockets.length;
  meter.ariaLabel = `Sockets of ${user}`;
  write(card.querySelector(".count"), `${sockets.length} of ${cap}`);
  keep(card.querySelector(".sockets"), sockets, (one) => one.id, { make: socketRow, update: updateSocket, heading: $("sockets-title") });
}

function socketRow({ id, user, subprotocol }) {
  const name = id.slice(-5);
  return element("li", {},
    element("div", {},
      element("code", { title: id }, `…${name}`), " ",
      element("span", { className: "tag" }),
      element("p", { className: "note", title: `subprotocol ${subprotocol || "none"}` })),
    button("Close", `socket ${name} of ${user}`, () => act(async () => `Closed ${several(await closeSocket(id), "socket")} with 1008.`)));
}

function updateSocket(row, socket) {
  const now = Date.now();
  const ago = (time) => duration((now - Date.parse(time)) / 1000);
  const parts = [`open ${ago(socket.opened_at)}`];
  if (socket.expires_at) parts.push(`expires in ${duration((Date.parse(socket.expires_at) - now) / 1000)}`);
  parts.push(`alive ${ago(socket.last_seen)} ago`, `${socket.messages.in} in, ${socket.messages.out} out`);
  write(row.querySelector(".note"), parts.map((part) => part.replaceAll(" ", "\u00a0")).join(" · "));
  write(row.querySelector(".tag"), socket.id === page.mine() ? "this page" : "");
}

// --- revocations -------------------------------------------------------------

function showRevocations(revoked) {
  const key = ({ until, ...subject }) => JSON.stringify(subject);
  keep($("revocations"), revoked, key, { make: revocationRow, update() {}, heading: $("revocations-title") });
  $("none-revoked").hidden = revoked.length > 0;
}

function revocationRow({ until, ...subject }) {
  const [kind, value] = Object.entries(subject).find(([name]) => name !== "issuer");
  const name = `${{ jti: "token", sid: "session" }[kind] ?? kind} ${value}`;
  return element("li", {},
    element("span", {}, name),
    button("Lift", `the revocation of ${name}`, () => act(async () => {
      await lift(subject);
      return `Lifted: ${name} may come in again.`;
    })));
}

function button(text, rest, onclick, className = "") {
  const made = element("button", { type: "button", className }, text, aside(` ${rest}`));
  made.addEventListener("click", onclick);
  return made;
}
