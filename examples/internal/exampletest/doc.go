// Package exampletest follows the README of an example as a reader would: it
// copies the folder, types the commands and compares what they print. What is
// to be typed is marked in the info string of a fenced block:
//
//	```sh test            is run, and must succeed
//	```sh test fails      is run, and must not
//	```sh test terminal   goes on until Ctrl-C, in a terminal of its own
//	```text test          is what the block before it prints, with … for
//	                      anything within a line; behind a terminal, what it
//	                      prints once it is ready
//
// Other blocks are for reading. The commands are taken as they stand, but for
// the ports, which are free ones, and for
//
//	go run ../../cmd/caddy
//
// which is that program, built once for all examples.
//
// What the machine lacks is said loudly; with CI=true it fails the test.
package exampletest
