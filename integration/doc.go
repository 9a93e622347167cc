// Package integration holds the black-box tests: a real Caddy process built
// from cmd/caddy, scripted identity providers and backends, clients that write
// every byte themselves. Nothing of the module is imported; what these tests
// know is what an operator, a client and a backend can see.
//
// A comment such as `// S-85` names the case of the team's list of failure
// modes and attacks that a test covers.
package integration
