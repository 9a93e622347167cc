package main

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"
)

// The stores are compared, and a handshake asks Redis once.
func TestStores(t *testing.T) {
	if _, err := exec.LookPath("redis-server"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("redis-server is not installed: .ci/run must install it")
		}
		t.Skip("NOT TESTED: redis-server is not installed (apt-get install redis-server)")
	}
	var out strings.Builder
	o := options{stores: true, sockets: 300, rounds: 1, duration: 200 * time.Millisecond, level: "ERROR", only: "x"}
	if err := run(t.Context(), o, &out); err != nil {
		t.Fatal(err)
	}
	ratio := `[\d.]+ \([\d.]+\)`
	for _, limits := range storeLimits {
		limits = regexp.QuoteMeta(strings.ReplaceAll(limits, "\n\t\t", ", "))
		for store, rest := range map[string]string{"memory": `– \| – \| –`, "redis": `\d+ \| 1\.0\d \| [12]\.\d\d`} {
			row := `(?m)^\| ` + limits + ` \| ` + store + ` \| ` + ratio + ` \| ` + ratio + ` \| ` + rest + ` \|$`
			if !regexp.MustCompile(row).MatchString(out.String()) {
				t.Errorf("no row %s in\n%s", row, &out)
			}
		}
	}
}

// One user is at the cap at once.
func TestStoresSameToken(t *testing.T) {
	if err := runStores(t.Context(), options{stores: true, sameToken: true}, t.TempDir(), "", nil, nil); err == nil {
		t.Error("is taken")
	}
}
