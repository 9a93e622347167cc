package module

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/time/rate"

	"github.com/caddyserver/caddy/v2"

	"github.com/wsgate/caddy-wsgate/handlers/tunnel"
)

// FlowRate is how much a client may send through a live socket.
type FlowRate struct {
	// So many messages or bytes …
	Number int `json:"number"`

	// … in this time.
	Per caddy.Duration `json:"per"`

	// How many may come at once. Default: the number.
	Burst int `json:"burst,omitempty"`

	// What happens beyond that: `delay` (default) stops reading the client
	// until it is within the rate again, `close` ends the socket with 1008.
	OnExcess string `json:"on_excess,omitempty"`

	// What is counted together: `socket` (default), or `user` for all sockets
	// that a user has at this node under the same tunnel name.
	By string `json:"by,omitempty"`
}

// Words of message_rate and byte_rate.
const (
	onExcessDelay = "delay"
	onExcessClose = "close"
	bySocket      = "socket"
)

func (f *FlowRate) provision() error {
	if f == nil {
		return nil
	}
	if f.Number < 1 || f.Per <= 0 || f.Burst < 0 {
		return errors.New("needs a number from 1 on, and a time")
	}
	if f.Burst == 0 {
		f.Burst = f.Number
	}
	switch f.OnExcess {
	case "", onExcessDelay, onExcessClose:
	default:
		return fmt.Errorf("%q is neither %s nor %s", f.OnExcess, onExcessDelay, onExcessClose)
	}
	switch f.By {
	case "", bySocket, byUser:
	default:
		return fmt.Errorf("by %q is neither %s nor %s", f.By, bySocket, byUser)
	}
	return nil
}

// bucket makes a bucket that is full.
func (f *FlowRate) bucket() *rate.Limiter {
	return rate.NewLimiter(rate.Limit(float64(f.Number)/time.Duration(f.Per).Seconds()), f.Burst)
}

// pace is what holds a socket of this user to the rate; nil without one. What
// the user's sockets share is given back by release, which is nil if they
// share nothing.
func (f *FlowRate) pace(option, tunnelName, user string) (pace *tunnel.Pace, release func()) {
	if f == nil {
		return nil, nil
	}
	pace = &tunnel.Pace{Close: f.OnExcess == onExcessClose}
	if f.By != byUser {
		pace.Bucket = f.bucket()
		return pace, nil
	}
	key := fmt.Sprintf("%s\x00%s\x00%s\x00%d/%d burst %d", option, tunnelName, user, f.Number, f.Per, f.Burst)
	shared, _, _ := buckets.LoadOrNew(key, func() (caddy.Destructor, error) {
		return sharedBucket{f.bucket()}, nil
	})
	pace.Bucket = shared.(sharedBucket).Limiter
	return pace, func() { _, _ = buckets.Delete(key) }
}

// buckets are those that the sockets of a user share, as long as there are
// any.
var buckets = caddy.NewUsagePool()

// sharedBucket is a bucket in the pool.
type sharedBucket struct{ *rate.Limiter }

// Destruct does nothing: a bucket holds only itself.
func (sharedBucket) Destruct() error { return nil }
