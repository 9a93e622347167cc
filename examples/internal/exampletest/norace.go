//go:build !race

package exampletest

// raced tells that the tests run under the race detector; so does Caddy then.
const raced = false
