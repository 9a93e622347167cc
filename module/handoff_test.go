package module

import (
	"context"
	"testing"
)

func TestHandoffInContext(t *testing.T) {
	if w := handoffOf(context.Background()); w != nil {
		t.Errorf("a handoff without a gate: %v", w)
	}
	w := new(upgradeWriter)
	if got := handoffOf(withHandoff(context.Background(), w)); got != w {
		t.Errorf("got %v, want the gate's", got)
	}
}
