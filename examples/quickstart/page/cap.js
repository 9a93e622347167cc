// Six sockets at once, where a user may have five.

import { $, element, enable, several, write } from "./dom.js";
import { counted, since } from "./gate.js";
import { carrying, dial, settled } from "./handshake.js";
import { look } from "./operator.js";

let sockets = [];

export function startCap(choice) {
  $("six").addEventListener("click", () => openSix(choice));
  $("six-close").addEventListener("click", () => {
    for (const socket of sockets) socket.close(1000, "bye");
  });
}

async function openSix(choice) {
  enable($("six"), false);
  write($("six-result"), "Opening six …");
  try {
    const chosen = await choice();
    const before = await counted();
    const told = await carrying(chosen, () => {
      sockets = Array.from({ length: 6 }, () => dial(chosen));
      $("six-list").replaceChildren(...sockets.map(row));
      $("six-list").hidden = false;
      return Promise.all(sockets.map(settled));
    });
    const open = told.filter(Boolean).length;
    const counts = (await since(before)).map(([name, n]) => `${n} ${name}`).join(", ");
    write($("six-result"), `${several(open, "socket")} let in, ${6 - open} refused. Meanwhile the gate counted: ${counts}.`);
  } catch (error) {
    write($("six-result"), error.message);
  }
  buttons();
  look();
}

// row shows what becomes of one of the six.
function row(socket, i) {
  const state = element("span", {}, "…");
  const item = element("li", {}, element("b", {}, String(i + 1)), state);
  let heard = false;
  socket.addEventListener("message", () => {
    heard = true;
    item.dataset.state = "open";
    write(state, "open");
  }, { once: true });
  socket.addEventListener("close", ({ code, reason }) => {
    item.dataset.state = heard ? "closed" : "refused";
    write(state, `${heard ? "closed" : "refused"}: ${code}${reason && !heard ? ` ${reason}` : ""}`);
    buttons();
  });
  return item;
}

function buttons() {
  const busy = sockets.some((socket) => socket.readyState !== WebSocket.CLOSED);
  enable($("six"), !busy);
  enable($("six-close"), busy);
}
