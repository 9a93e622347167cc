package redis

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/wsgate/caddy-wsgate/handlers/store"
)

// Learn implements store.Shared.
func (s *Store) Learn(ctx context.Context) error {
	select {
	case <-s.learned:
	default:
		ctx, cancel := context.WithTimeout(ctx, s.options.Timeout)
		defer cancel()
		select {
		case <-s.learned:
		case <-ctx.Done():
			if s.options.Deny {
				return ErrAway // what is not known may have been revoked
			}
		}
	}
	if s.options.Deny && s.state.away() {
		return ErrAway
	}
	return nil
}

// Revoke implements store.Shared. What can't be said now is said when Redis is
// back: see learn.
func (s *Store) Revoke(ctx context.Context, changed store.Revocation) error {
	err := ErrAway
	if !s.state.away() {
		err = s.revoke(ctx, []store.Revocation{changed})
	}
	if err != nil {
		s.mu.Lock()
		s.asked = false
		s.mu.Unlock()
		s.hurryBeat()
		return fmt.Errorf("other nodes learn of it when redis is back: %w", err)
	}
	return nil
}

// revoke says what was revoked, or lifted.
func (s *Store) revoke(ctx context.Context, all []store.Revocation) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	keys := []string{s.key("all", "revocations"), s.key("all", "ends"), s.key("all", "version")}
	args := []any{s.channel("commands")}
	for _, r := range all {
		subject, value, err := encode(r)
		if err != nil {
			return err
		}
		ends := "+inf"
		if at := r.Ends(); !at.IsZero() {
			ends = strconv.FormatInt(at.UnixMicro(), 10)
		}
		args = append(args, subject, value, r.Said.UnixMicro(), ends)
	}
	return revokeScript.Run(ctx, s.client, keys, args...).Err()
}

// learn takes over all revocations that Redis has, and gives it those that it
// has not: it may have lost some, or never heard of them.
func (s *Store) learn(ctx context.Context, version string) error {
	s.mu.Lock()
	s.asked, s.version = true, version
	s.mu.Unlock()
	err := s.exchange(ctx)
	if err != nil {
		s.mu.Lock()
		s.asked = false
		s.mu.Unlock()
		return fmt.Errorf("learning revocations: %w", err)
	}
	return nil
}

func (s *Store) exchange(ctx context.Context) error {
	there := make(map[store.Subject]time.Time)
	var cursor uint64
	for {
		fields, next, err := s.scan(ctx, cursor)
		if err != nil {
			return err
		}
		for i := 0; i+1 < len(fields); i += 2 {
			if r, ok := s.take(fields[i], fields[i+1]); ok {
				there[r.Subject] = r.Said
			}
		}
		if cursor = next; cursor == 0 {
			break
		}
	}
	s.revoked()
	var missing []store.Revocation
	for _, r := range s.options.Revocations.Known(time.Now()) {
		if said, ok := there[r.Subject]; !ok || said.Before(r.Said.Truncate(time.Microsecond)) {
			missing = append(missing, r)
		}
	}
	for len(missing) > 0 {
		some := missing[:min(batch, len(missing))]
		if err := s.revoke(ctx, some); err != nil {
			return err
		}
		missing = missing[len(some):]
	}
	return nil
}

func (s *Store) scan(ctx context.Context, cursor uint64) (fields []string, next uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return s.client.HScan(ctx, s.key("all", "revocations"), cursor, "", 1000).Result()
}

// take takes over one revocation.
func (s *Store) take(subject, value string) (store.Revocation, bool) {
	r, err := decode(subject, value)
	if err != nil {
		if s.strange.due() {
			s.log.Load().Error("not understanding a revocation in redis", zap.Error(err))
		}
		return r, false
	}
	if !s.options.Revocations.Merge(r, time.Now()) && s.full.due() {
		s.log.Load().Error("no room for a revocation of another node: lift some, or give them an end")
	}
	return r, true
}

// revoked tells the owner that there are new ones.
func (s *Store) revoked() {
	if s.options.Revoked != nil {
		s.options.Revoked()
	}
}

// lifted stands in a value for a revocation that holds no more.
const lifted = "lifted"

// encode writes a revocation as a field of a hash: its subject, and when it
// was said and when it ends, in microseconds.
func encode(r store.Revocation) (subject, value string, err error) {
	text, err := json.Marshal(r.Subject)
	if err != nil {
		return "", "", err
	}
	value = strconv.FormatInt(r.Said.UnixMicro(), 10)
	switch {
	case r.Lifted:
		value += " " + lifted
	case !r.Until.IsZero():
		value += " " + strconv.FormatInt(r.Until.UnixMicro(), 10)
	}
	return string(text), value, nil
}

// decode reads what encode wrote.
func decode(subject, value string) (r store.Revocation, err error) {
	if err := json.Unmarshal([]byte(subject), &r.Subject); err != nil {
		return r, fmt.Errorf("reading a subject: %w", err)
	}
	if r.Subject == (store.Subject{Issuer: r.Issuer}) {
		return r, errors.New("reading a subject: it names nothing")
	}
	said, until, ends := strings.Cut(value, " ")
	micros, err := strconv.ParseInt(said, 10, 64)
	if err != nil {
		return r, fmt.Errorf("reading when it was said: %w", err)
	}
	r.Said = time.UnixMicro(micros)
	switch {
	case until == lifted:
		r.Lifted = true
	case ends:
		if micros, err = strconv.ParseInt(until, 10, 64); err != nil {
			return r, fmt.Errorf("reading when it ends: %w", err)
		}
		r.Until = time.UnixMicro(micros)
	}
	return r, nil
}
