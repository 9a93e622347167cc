package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// The benchmark runs, and its table has a row and every figure for each proxy.
func TestRun(t *testing.T) {
	rows := map[string]int{"wsgate, ES256": 6, plain: 6, "HAProxy, ES256": 4, "nginx, no auth": 4} // and the figures of each
	for program, row := range map[string]string{"haproxy": "HAProxy, ES256", "nginx": "nginx, no auth"} {
		if _, err := exec.LookPath(program); err != nil {
			if os.Getenv("CI") == "true" {
				t.Errorf("%s is not installed: .ci/run must install it", program)
			}
			t.Logf("NOT TESTED: %s is not installed (apt-get install %s)", program, program)
			delete(rows, row)
		}
	}
	var out strings.Builder
	o := options{sockets: 100, rounds: 1, duration: 200 * time.Millisecond, settle: 300 * time.Millisecond, echoers: 8, streams: 2, level: "ERROR"}
	if err := run(t.Context(), o, &out); err != nil {
		t.Fatal(err)
	}
	for row, figures := range rows {
		found := false
		for line := range strings.Lines(out.String()) {
			if strings.HasPrefix(line, "| "+row+" |") {
				found = true
				if n := strings.Count(line, "("); n != figures {
					t.Errorf("%d figures, want %d: %s", n, figures, line)
				}
			}
		}
		if !found {
			t.Errorf("no row for %s in\n%s", row, &out)
		}
	}
}
