// Package module is Caddy's side of the gate: the handler http.handlers.ws_gate,
// the transport http.reverse_proxy.transport.ws_tunnel, and the app ws_gate
// that ties what outlives a request to the running config. What the gate does
// is in the packages under handlers; here it is configured, put in order and
// reported.
package module
