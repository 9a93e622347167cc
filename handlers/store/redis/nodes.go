package redis

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"go.uber.org/zap"
)

// gatherTime is how long other nodes have to answer.
const gatherTime = time.Second

// obeying bounds how many questions of others are answered at once.
const obeying = 16

// notice is what is said on the channel of commands.
type notice struct {
	// Members that lost their place, by acquire.lua.
	Evicted []string `json:"evicted,omitempty"`

	// What was revoked or lifted, by revoke.lua: the states of the whole
	// before and after it.
	Changed []struct {
		Subject string `json:"subject"`
		Value   string `json:"value"`
	} `json:"changed,omitempty"`
	Before  string `json:"before,omitempty"`
	Version string `json:"version,omitempty"`

	// A question to all, or the answer to one.
	From     string          `json:"from,omitempty"`
	Number   string          `json:"number,omitempty"`
	Question json.RawMessage `json:"question,omitempty"`
	Answer   json.RawMessage `json:"answer,omitempty"`
}

// channel is the name of a channel. Channels, unlike keys, are shared by all
// databases. The word keeps a prefix that ends in a digit apart.
func (s *Store) channel(name string) string {
	db := 0
	if client, ok := s.client.(*goredis.Client); ok {
		db = client.Options().DB
	}
	return s.options.Prefix + "db" + strconv.Itoa(db) + ":" + name
}

// Gather implements store.Shared.
func (s *Store) Gather(ctx context.Context, question []byte) (answers [][]byte, err error) {
	if s.state.away() {
		return nil, fmt.Errorf("only this node: %w", ErrAway)
	}
	ctx, cancel := context.WithTimeout(ctx, gatherTime)
	defer cancel()
	silent, err := s.others(ctx)
	if err != nil {
		s.suspect(err)
		return nil, fmt.Errorf("only this node: %s", reason(err))
	}
	came := make(chan notice, len(silent)+obeying)
	s.mu.Lock()
	s.changes++
	number := strconv.FormatUint(s.changes, 10)
	s.waiting[number] = came
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.waiting, number)
		s.mu.Unlock()
	}()
	// Also where nobody is known to hear it: one may be late to say it lives.
	if err := s.say(ctx, "commands", notice{From: s.self, Number: number, Question: question}); err != nil {
		s.suspect(err)
		return nil, fmt.Errorf("only this node: %s", reason(err))
	}
	for len(silent) > 0 {
		select {
		case n := <-came:
			if _, expected := silent[n.From]; expected {
				delete(silent, n.From)
				answers = append(answers, n.Answer)
			}
		case <-ctx.Done():
			names := make([]string, 0, len(silent))
			for _, name := range silent {
				names = append(names, name)
			}
			slices.Sort(names)
			return answers, fmt.Errorf("no answer from %s", strings.Join(names, ", "))
		}
	}
	return answers, nil
}

// others are the other nodes that live, by id.
func (s *Store) others(ctx context.Context) (map[string]string, error) {
	s.mu.Lock()
	now := time.Now().Add(s.ahead).UnixMicro()
	s.mu.Unlock()
	live, err := s.client.ZRangeByScore(ctx, s.key("all", "nodes"), &goredis.ZRangeBy{Min: strconv.FormatInt(now, 10), Max: "+inf"}).Result()
	if err != nil {
		return nil, err
	}
	names := make(map[string]string)
	for _, node := range live {
		if id, name, _ := strings.Cut(node, " "); id != s.self {
			names[id] = name
		}
	}
	return names, nil
}

// say publishes a notice.
func (s *Store) say(ctx context.Context, channel string, n notice) error {
	text, err := json.Marshal(n)
	if err != nil {
		return err
	}
	return s.client.Publish(ctx, s.channel(channel), text).Err()
}

// listen hears what other nodes say, until the store is closed.
func (s *Store) listen(ctx context.Context) {
	free := make(chan struct{}, obeying)
	retry := retryFirst
	for ctx.Err() == nil {
		heard, err := s.hear(ctx, free)
		if ctx.Err() != nil {
			return
		}
		s.log.Load().Debug("listening to redis", zap.Error(err))
		s.hurryBeat() // it tells whether Redis is away
		if heard {
			retry = retryFirst
		}
		if refused := goredis.Error(nil); errors.As(err, &refused) {
			s.suspect(fmt.Errorf("listening: %w", err))
		}
		select {
		case <-ctx.Done():
		case <-time.After(retry):
		}
		retry = min(2*retry, retryMost)
	}
}

// silence is how long a subscription may say nothing before it is asked
// whether it lives.
const silence = 2 * time.Second

// errSilent ends a subscription of which nothing is heard any more.
var errSilent = errors.New("no sign of life")

// hear subscribes, and hears until the connection fails.
func (s *Store) hear(ctx context.Context, free chan struct{}) (heard bool, err error) {
	subscription := s.client.Subscribe(ctx)
	defer subscription.Close()                                          //nolint:errcheck // nothing is lost
	defer context.AfterFunc(ctx, func() { _ = subscription.Close() })() // ends the wait for a message
	short, cancel := context.WithTimeout(ctx, patience)
	err = subscription.Subscribe(short, s.channel("commands"), s.channel("answers:"+s.self))
	cancel()
	if err != nil {
		return false, err
	}
	asked := false // whether it lives
	for {
		message, err := subscription.ReceiveTimeout(ctx, silence)
		switch {
		case err == nil:
			asked = false
		case isTimeout(err) && !asked && ctx.Err() == nil:
			if err := subscription.Ping(ctx); err != nil {
				return heard, err
			}
			asked = true
			continue
		case isTimeout(err):
			return heard, errSilent
		default:
			return heard, err
		}
		switch message := message.(type) {
		case *goredis.Subscription:
			heard = true
			s.missed()
		case *goredis.Message:
			s.handle(ctx, message.Payload, free)
		}
	}
}

func isTimeout(err error) bool {
	var timeout interface{ Timeout() bool }
	return errors.As(err, &timeout) && timeout.Timeout()
}

// missed makes up for what was said while nobody listened: revocations by
// their version, evictions by renewing.
func (s *Store) missed() {
	s.mu.Lock()
	s.renew = true
	s.mu.Unlock()
	s.hurryBeat()
}

// handle does what a notice asks for.
func (s *Store) handle(ctx context.Context, text string, free chan struct{}) {
	var n notice
	if err := json.Unmarshal([]byte(text), &n); err != nil {
		if s.strange.due() {
			s.log.Load().Error("not understanding a message in redis", zap.Error(err))
		}
		return
	}
	switch {
	case n.Evicted != nil:
		for _, id := range n.Evicted {
			s.evict(id)
		}
	case n.Changed != nil:
		for _, c := range n.Changed {
			s.take(c.Subject, c.Value)
		}
		s.advance(n.Before, n.Version)
		s.revoked()
	case n.Answer != nil:
		s.mu.Lock()
		asker := s.waiting[n.Number]
		s.mu.Unlock()
		select {
		case asker <- n: // never where nobody waits
		default:
		}
	case n.Question != nil && n.From != s.self:
		select {
		case free <- struct{}{}:
			s.running.Go(func() {
				defer func() { <-free }()
				s.obey(ctx, n)
			})
		default:
			if s.flooded.due() {
				s.log.Load().Warn("too many commands of other nodes at once")
			}
		}
	}
}

// advance notes the version that this change led to, if nothing was missed
// before it. Otherwise the next beat finds that out.
func (s *Store) advance(before, version string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asked && s.version == before {
		s.version = version
	}
}

// obey answers a question of another node.
func (s *Store) obey(ctx context.Context, n notice) {
	if s.options.Asked == nil {
		return
	}
	answer := s.options.Asked(n.Question)
	if answer == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, gatherTime)
	defer cancel()
	if err := s.say(ctx, "answers:"+n.From, notice{From: s.self, Number: n.Number, Answer: answer}); err != nil {
		s.suspect(fmt.Errorf("answering another node: %w", err))
	}
}
