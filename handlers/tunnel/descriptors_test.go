package tunnel

import (
	"os"
	"testing"
)

// descriptors is how many file descriptors the process has open.
func descriptors(t *testing.T) int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("no /proc here")
	}
	return len(entries)
}
