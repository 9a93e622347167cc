// Package caddyfile is the gate's language in a Caddyfile: the directives
// ws_gate and ws_proxy. It turns tokens into the modules of package module and
// decides nothing else. What is wrong in an option is said here, where its
// file and line are known.
package caddyfile
