// What the page asks the servers beside its WebSockets: tokens of the identity
// provider, and the gate's admin API and metrics. A real page has no business
// with the latter two, see the Caddyfile.

// cap is max_connections in the Caddyfile.
export const cap = 5;

// statuses are what the gate answers for its reasons.
export const statuses = {
  bad_request: 400, several_tokens: 400,
  no_token: 401, invalid_token: 401, revoked: 401,
  origin: 403, claims: 403,
  rate: 429, cap: 429,
  backend: 502,
  no_keys: 503, draining: 503, store: 503,
};

// ask returns a response, or throws what there is to say.
async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, { cache: "no-store", ...options });
  } catch {
    throw new Error("Nobody answers: is the quickstart still running?");
  }
  if (!response.ok) throw new Error(await complaint(response));
  return response;
}

async function complaint(response) {
  const text = (await response.text()).trim();
  try {
    return JSON.parse(text).error; // of Caddy's admin API
  } catch {
    return text || `${response.status} ${response.statusText}`;
  }
}

const json = async (path, options) => (await ask(path, options)).json();
const post = (path, body) => json(path, { method: "POST", body: JSON.stringify(body) });

// --- the identity provider ---------------------------------------------------

export const mint = async (form) => (await (await ask("idp/token", { method: "POST", body: new URLSearchParams(form) })).text()).trim();

// login has the identity provider set the token as a cookie that no script can
// read, as the login of a site would; logout takes it back.
export const login = (token) => ask("idp/session", { method: "POST", body: new URLSearchParams({ token }) });
export const logout = () => ask("idp/session", { method: "DELETE" });

// --- the admin API -----------------------------------------------------------

export const connections = async () => (await json("ws_gate/connections?limit=200")).connections;
export const revocations = async () => (await json("ws_gate/revocations")).revocations;

export const closeSocket = async (id) => (await json(`ws_gate/connections/${id}`, { method: "DELETE" })).closed;
export const closeUser = async ({ user, issuer }) => (await json(`ws_gate/connections?${new URLSearchParams({ user, issuer })}`, { method: "DELETE" })).closed;
export const revoke = async (subject) => (await post("ws_gate/revocations", subject)).closed;
export const lift = (subject) => json(`ws_gate/revocations?${new URLSearchParams(subject)}`, { method: "DELETE" });
export const say = async (to, text) => (await post("ws_gate/messages", { ...to, text })).sent;

// --- the metrics -------------------------------------------------------------

// counted is what the gate counted since it started: handshakes by result, and
// answers to its pings.
export async function counted() {
  const metrics = await (await ask("metrics")).text();
  const results = {};
  let pings = 0;
  for (const [, name, labels, value] of metrics.matchAll(/^caddy_ws_gate_(\w+)\{(.*)\} (\S+)$/gm)) {
    const one = labels.match(/result="([^"]*)"/)?.[1];
    if (name === "handshakes_total") results[one] = (results[one] ?? 0) + Number(value);
    if (name === "ping_rtt_seconds_count") pings += Number(value);
  }
  return { results, pings };
}

// since is what was counted after before.
export async function since(before) {
  const now = (await counted()).results;
  return Object.entries(now).map(([name, n]) => [name, n - (before.results[name] ?? 0)]).filter(([, n]) => n > 0);
}
