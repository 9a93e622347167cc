package module

import "testing"

func TestFlowRate(t *testing.T) {
	rate := func(more object) object {
		config := object{"number": 5, "per": "1s"}
		for name, value := range more {
			config[name] = value
		}
		return object{"message_rate": config, "byte_rate": config}
	}
	for _, c := range []struct {
		name   string
		config object
		good   bool
	}{
		{"defaults", nil, true},
		{"close by user", object{"burst": 9, "on_excess": "close", "by": "user"}, true},
		{"delay by socket", object{"on_excess": "delay", "by": "socket"}, true},
		{"no number", object{"number": 0}, false},
		{"no time", object{"per": 0}, false},
		{"negative burst", object{"burst": -1}, false},
		{"another word", object{"on_excess": "drop"}, false},
		{"by address", object{"by": "ip"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			g, _, err := load(t, gateJSON(rate(c.config)))
			if (err == nil) != c.good {
				t.Fatalf("%v, good: %t", err, c.good)
			}
			if c.good && c.config["burst"] == nil && g.MessageRate.Burst != 5 {
				t.Errorf("the burst is %d, and defaults to the number", g.MessageRate.Burst)
			}
		})
	}
	g, _, err := load(t, gateJSON())
	if err != nil {
		t.Fatal(err)
	}
	if pace, release := g.MessageRate.pace("message_rate", "chat", "alice"); pace != nil || release != nil {
		t.Errorf("without a rate: %v, or something to give back", pace)
	}
}

// By user, sockets share one bucket as long as there are any; by socket, none.
func TestFlowRateShares(t *testing.T) {
	g, _ := newGate(t, object{
		"message_rate": object{"number": 5, "per": "1s", "by": "user", "on_excess": "close"},
		"byte_rate":    object{"number": 5, "per": "1s"},
	})
	before := references(buckets)
	user, socket := g.MessageRate, g.ByteRate
	first, end1 := user.pace("message_rate", "chat", "alice")
	second, end2 := user.pace("message_rate", "chat", "alice")
	other, end3 := user.pace("message_rate", "chat", "bob")
	elsewhere, end4 := user.pace("message_rate", "talk", "alice")
	if first.Bucket != second.Bucket || first.Bucket == other.Bucket || first.Bucket == elsewhere.Bucket {
		t.Error("a bucket belongs to a user in a tunnel")
	}
	if !first.Close {
		t.Error("on_excess is lost")
	}
	if a, release := socket.pace("byte_rate", "chat", "alice"); a.Close || a.Bucket == first.Bucket || release != nil {
		t.Errorf("%+v by socket", a)
	}
	end1()
	if n := references(buckets); n != before+3 {
		t.Errorf("%d buckets in use, want %d", n, before+3)
	}
	end2()
	end3()
	end4()
	if n := references(buckets); n != before {
		t.Errorf("%d buckets in use, want %d", n, before)
	}
}
