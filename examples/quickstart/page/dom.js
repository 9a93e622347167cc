// What every part of the page needs to write into it. All text goes in as
// text: what tokens, backends and operators say is never read as HTML.

export const $ = (id) => document.getElementById(id);

// element makes one with properties and children.
export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

// aside is text for those who hear the page.
export const aside = (text) => element("span", { className: "unseen" }, text);

// facts fills a description list with rows of name and value.
export function facts(list, rows) {
  list.replaceChildren(...rows.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
  list.hidden = rows.length === 0;
}

// write changes text only where it differs, so that a selection in it stays
// and a screen reader is not told the same again.
export function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// enable says whether a button does anything now. One that does not keeps the
// focus, as a disabled one would not, and a screen reader still finds it.
export function enable(button, yes) {
  button.ariaDisabled = String(!yes);
}

// A click is how all of them act, also by Enter in a field of their form.
document.addEventListener("click", (event) => {
  if (event.target.closest("[aria-disabled=true]")) {
    event.preventDefault();
    event.stopImmediatePropagation();
  }
}, true);

// result tells what came of something, in a live region.
export function result(node, state, text) {
  node.dataset.state = state;
  write(node, text);
}

// keep makes the children of a list those of items. What is there stays as it
// is and where it is, with the focus in it; where the focus was in what goes,
// it moves to the heading.
export function keep(list, items, key, { make, update, heading }) {
  const wanted = new Set(items.map(key));
  let lost = false;
  for (const child of [...list.children]) {
    if (wanted.has(child.dataset.key)) continue;
    lost ||= child.contains(document.activeElement);
    child.remove();
  }
  const there = new Map([...list.children].map((child) => [child.dataset.key, child]));
  items.forEach((item, i) => {
    let child = there.get(key(item));
    if (!child) {
      child = make(item);
      child.dataset.key = key(item);
    }
    if (list.children[i] !== child) list.insertBefore(child, list.children[i] ?? null);
    update(child, item);
  });
  if (lost) heading.focus();
}

// duration writes seconds as 42 s, 2:05 or 1:00:00.
export function duration(seconds) {
  seconds = Math.max(0, Math.round(seconds));
  if (seconds < 60) return `${seconds} s`;
  const two = (n) => String(n).padStart(2, "0");
  const h = Math.floor(seconds / 3600), m = Math.floor(seconds / 60) % 60;
  return h ? `${h}:${two(m)}:${two(seconds % 60)}` : `${m}:${two(seconds % 60)}`;
}

// several counts things in words.
export const several = (n, one, more = `${one}s`) => `${n} ${n === 1 ? one : more}`;
