package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// story is what the cluster is taken through, and said of it.
type story struct {
	*cluster
	out  io.Writer
	a, b *gate

	bob  []*socket // at A and B, open to the end
	dave []*socket
}

// tell goes through all steps. It ends at the first that is not as it says.
func (c *cluster) tell(ctx context.Context, out io.Writer) error {
	s := &story{cluster: c, out: out, a: c.gates[0], b: c.gates[1]}
	for _, g := range c.gates {
		fmt.Fprintf(out, "gate %s   http://%s   node %s\n", g.name, g.addr, g.node)
	}
	fmt.Fprintf(out, "Redis    redis://%s\n", c.redisAddr)
	for i, step := range []struct {
		title string
		tell  func() error
	}{
		{"A cap over both gates: max_connections 3 by user", s.sharedCap},
		{"The newest stay: max_connections 3 by user evict_oldest", s.evictOldest},
		{"One list for both gates", s.oneList},
		{"A message to a user, wherever they are", s.message},
		{"A revocation", s.revocation},
		{"Redis is killed", s.redisGone},
		{"Redis is back, with nothing in it", s.redisBack},
	} {
		if ctx.Err() != nil {
			return errors.New("interrupted")
		}
		fmt.Fprintf(out, "\n%d. %s\n", i+1, step.title)
		if err := step.tell(); err != nil {
			return fmt.Errorf("step %d: %w", i+1, err)
		}
	}
	fmt.Fprintf(out, "\nEverything was as it should be.\n")
	return nil
}

func (s *story) say(format string, args ...any) {
	fmt.Fprintf(s.out, "   "+format+"\n", args...)
}

// handshake opens a socket, or is refused, as wanted, and says so.
func (s *story) handshake(g *gate, path, user string, want int) (*socket, error) {
	opened, err := s.open(g, path, user)
	var refused refusal
	switch {
	case err == nil && want == http.StatusSwitchingProtocols:
		s.say("%s at %s: 101, %q", user, g.name, "hello "+user)
		return opened, nil
	case err == nil:
		return nil, fmt.Errorf("%s at %s was let in, in place of %d", user, g.name, want)
	case errors.As(err, &refused) && refused.status == want:
		s.say("%s at %s: %s", user, g.name, refused)
		return nil, nil
	default:
		return nil, fmt.Errorf("%s at %s: %w, in place of %d", user, g.name, err, want)
	}
}

// soon opens a socket whose place is about to be free.
func (s *story) soon(g *gate, path, user string) error {
	err := await("waiting for a place", func() error {
		_, err := s.open(g, path, user)
		return err
	})
	if err == nil {
		s.say("%s at %s: 101, %q", user, g.name, "hello "+user)
	}
	return err
}

func (s *story) sharedCap() (err error) {
	var first *socket
	for i, try := range []struct {
		gate *gate
		want int
	}{{s.a, 101}, {s.a, 101}, {s.b, 101}, {s.b, 429}, {s.a, 429}} {
		opened, err := s.handshake(try.gate, "/chat", "alice", try.want)
		if err != nil {
			return err
		}
		if i == 0 {
			first = opened
		}
	}
	s.say("Others have a cap of their own:")
	for _, g := range s.gates {
		opened, err := s.handshake(g, "/chat", "bob", 101)
		if err != nil {
			return err
		}
		s.bob = append(s.bob, opened)
	}
	s.say("Alice closes a socket at A. Its place is free at B:")
	first.close()
	return s.soon(s.b, "/chat", "alice")
}

func (s *story) evictOldest() error {
	var all []*socket
	for _, g := range []*gate{s.a, s.b, s.b, s.b} {
		opened, err := s.handshake(g, "/feed", "carol", 101)
		if err != nil {
			return err
		}
		all = append(all, opened)
	}
	reason, err := all[0].closed(1008)
	if err != nil {
		return err
	}
	s.say("Her oldest, at A, made room for the fourth, at B: closed with 1008 %q", reason)
	for _, one := range all[1:] {
		if err := one.echoes("still here"); err != nil {
			return err
		}
	}
	return nil
}

func (s *story) oneList() error {
	s.say("GET /ws_gate/connections?user=alice of A says, shortened:")
	list, err := s.a.list("alice")
	if err != nil {
		return err
	}
	at := make(map[string]int)
	for _, one := range list {
		at[one.Node]++
	}
	if len(list) != 3 || at[s.a.node] != 1 || at[s.b.node] != 2 {
		return fmt.Errorf("the list is not one of 1 socket at A and 2 at B: %v", list)
	}
	for _, g := range s.gates { // lists are ordered by ID, which says nothing
		for range at[g.node] {
			s.say("user alice, tunnel chat, node %s, which is %s", g.node, g.name)
		}
	}
	return nil
}

// alice is her live sockets.
func (s *story) alice() (live []*socket) {
	for _, one := range s.live {
		select {
		case <-one.ended:
		default:
			if one.user == "alice" {
				live = append(live, one)
			}
		}
	}
	return live
}

func (s *story) message() error {
	const body = `{"user": "alice", "text": "lunch?"}`
	var answer struct{ Sent int }
	if err := s.a.ask(http.MethodPost, "messages", body, &answer); err != nil {
		return err
	}
	s.say("POST /ws_gate/messages %s to A: sent to %d sockets", body, answer.Sent)
	if answer.Sent != 3 {
		return fmt.Errorf("sent to %d sockets in place of 3", answer.Sent)
	}
	for _, one := range s.alice() {
		if err := one.hears("lunch?"); err != nil {
			return err
		}
		s.say("alice at %s hears %q", one.gate.name, "lunch?")
	}
	return nil
}

func (s *story) revocation() error {
	const body = `{"user": "alice"}`
	var answer struct{ Closed int }
	sockets, begin := s.alice(), time.Now()
	if err := s.a.ask(http.MethodPost, "revocations", body, &answer); err != nil {
		return err
	}
	s.say("POST /ws_gate/revocations %s to A: %d sockets closed", body, answer.Closed)
	if answer.Closed != 3 {
		return fmt.Errorf("%d sockets closed in place of 3", answer.Closed)
	}
	for _, one := range sockets {
		reason, err := one.closed(3000)
		if err != nil {
			return err
		}
		s.say("alice at %s: closed with 3000 %q", one.gate.name, reason)
	}
	s.say("All within %d ms. Until it is lifted she is refused at both:", time.Since(begin).Milliseconds())
	for _, g := range s.gates {
		if _, err := s.handshake(g, "/chat", "alice", 401); err != nil {
			return err
		}
	}
	return nil
}

func (s *story) redisGone() error {
	s.redis.kill()
	for _, one := range s.bob {
		if err := one.echoes("are you there?"); err != nil {
			return err
		}
		s.say("bob at %s, with a socket from before: says something and hears the echo", one.gate.name)
	}
	s.say("Each gate goes on by its own counts, on_error local: a cap of 3 here and 3 there.")
	for _, g := range s.gates {
		for _, want := range []int{101, 101, 101, 429} {
			opened, err := s.handshake(g, "/chat", "dave", want)
			if err != nil {
				return err
			}
			if opened != nil {
				s.dave = append(s.dave, opened)
			}
		}
	}
	if _, err := s.handshake(s.b, "/chat", "alice", 401); err != nil {
		return err
	}
	return s.logged("redis is away")
}

// logged waits until both gates have logged the message.
func (s *story) logged(message string) error {
	for _, g := range s.gates {
		if err := g.await("waiting for "+g.name+" to log "+message, func() error {
			if log := read(g.log); !strings.Contains(log, fmt.Sprintf(`"msg":%q`, message)) {
				return errors.New("it does not")
			}
			return nil
		}); err != nil {
			return err
		}
		s.say("%s logs %q", g.name, message)
	}
	return nil
}

func (s *story) redisBack() error {
	if err := s.startRedis(); err != nil {
		return err
	}
	if err := s.logged("redis is back"); err != nil {
		return err
	}
	s.say("Dave has 6 sockets where 3 are allowed. None is closed, and no other let in:")
	for _, g := range s.gates {
		if _, err := s.handshake(g, "/chat", "dave", 429); err != nil {
			return err
		}
	}
	for _, one := range append(s.dave, s.bob...) {
		if err := one.echoes("still here"); err != nil {
			return err
		}
	}
	s.say("Dave closes four. There is room for one more, at either gate:")
	for _, one := range s.dave[:4] {
		one.close()
	}
	if err := s.soon(s.a, "/chat", "dave"); err != nil {
		return err
	}
	if _, err := s.handshake(s.b, "/chat", "dave", 429); err != nil {
		return err
	}
	if _, err := s.handshake(s.b, "/chat", "alice", 401); err != nil {
		return err
	}
	if err := s.b.ask(http.MethodDelete, "revocations?user=alice", "", nil); err != nil {
		return err
	}
	s.say("DELETE /ws_gate/revocations?user=alice of B lifts the revocation:")
	return s.soon(s.a, "/chat", "alice")
}
