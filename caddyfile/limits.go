package caddyfile

import (
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/caddyserver/caddy/v2"

	"github.com/wsgate/caddy-wsgate/module"
)

// handshakeRate parses a rate of requests. Syntax:
//
//	handshake_rate <number>/<duration> [burst <number>] [by ip|user|<placeholder>] [shared]
func (p *gateParser) handshakeRate(o option) error {
	r := new(module.HandshakeRate)
	if !o.NextArg() {
		return o.Errf("handshake_rate: a rate such as 20/1s is missing")
	}
	var err error
	if r.Number, r.Per, err = o.rate(o.Val()); err != nil {
		return err
	}
	for o.NextArg() {
		switch word := o.Val(); {
		case word == "burst" && r.Burst == 0:
			r.Burst, err = o.number()
		case word == "by" && r.By == "":
			r.By, err = o.by()
		case word == "shared" && !r.Shared:
			r.Shared = true
		default:
			err = o.Errf("handshake_rate: unexpected argument %q", word)
		}
		if err != nil {
			return err
		}
	}
	p.gate.HandshakeRate = append(p.gate.HandshakeRate, r)
	return o.noBlock()
}

// maxConnections parses a cap. Syntax:
//
//	max_connections <number>|<placeholder> [by user|ip|<placeholder>] [reject|evict_oldest]
func (p *gateParser) maxConnections(o option) (err error) {
	m := new(module.MaxConnections)
	if !o.NextArg() {
		return o.Errf("max_connections: a number is missing")
	}
	m.Number = o.Val()
	if n, err := strconv.Atoi(m.Number); !isPlaceholder(m.Number) && (err != nil || n < 1) {
		return o.Errf("max_connections: %q is neither a number from 1 on nor a placeholder", m.Number)
	}
	for o.NextArg() {
		switch word := o.Val(); {
		case word == "by" && m.By == "":
			m.By, err = o.by()
		case (word == "reject" || word == "evict_oldest") && m.OnFull == "":
			m.OnFull = word
		default:
			err = o.Errf("max_connections: unexpected argument %q", word)
		}
		if err != nil {
			return err
		}
	}
	p.gate.MaxConnections = append(p.gate.MaxConnections, m)
	return o.noBlock()
}

// rate is so many in a time: 20/1s.
func (o option) rate(text string) (number int, per caddy.Duration, err error) {
	count, span, ok := strings.Cut(text, "/")
	number, errNumber := strconv.Atoi(count)
	d, errSpan := caddy.ParseDuration(span)
	if !ok || errNumber != nil || errSpan != nil || number < 1 || d < time.Millisecond {
		return 0, 0, o.Errf("%s: %q is not a rate such as 20/1s", o.name, text)
	}
	return number, caddy.Duration(d), nil
}

// number takes the next argument as a number from 1 on.
func (o option) number() (int, error) {
	word := o.Val()
	if !o.NextArg() {
		return 0, o.Errf("%s: the number behind %q is missing", o.name, word)
	}
	n, err := strconv.Atoi(o.Val())
	if err != nil || n < 1 {
		return 0, o.Errf("%s: %q is not a number from 1 on", o.name, o.Val())
	}
	return n, nil
}

// by takes the next argument as what a limit counts by.
func (o option) by() (string, error) {
	if !o.NextArg() {
		return "", o.Errf("%s: what it counts by is missing (ip, user or a placeholder)", o.name)
	}
	by := o.Val()
	if by != "ip" && by != "user" && !isPlaceholder(by) {
		return "", o.Errf("%s: %q is neither ip, user nor a placeholder", o.name, by)
	}
	return by, nil
}

func isPlaceholder(text string) bool {
	return strings.HasPrefix(text, "{") && strings.HasSuffix(text, "}")
}

// flowRate parses a rate of what passes through a socket, counted by count.
// Syntax:
//
//	message_rate <number>/<duration> [burst <number>] [delay|close] [by socket|user]
//	byte_rate    <size>/<duration>   [burst <size>]   [delay|close] [by socket|user]
func (o option) flowRate(rate **module.FlowRate, count func(option, string) (int, error)) (err error) {
	f := new(module.FlowRate)
	*rate = f
	if !o.NextArg() {
		return o.Errf("%s: a rate is missing", o.name)
	}
	number, span, ok := strings.Cut(o.Val(), "/")
	per, errSpan := caddy.ParseDuration(span)
	if !ok || errSpan != nil || per < time.Millisecond {
		return o.Errf("%s: %q is not a rate such as 50/1s", o.name, o.Val())
	}
	f.Per = caddy.Duration(per)
	if f.Number, err = count(o, number); err != nil {
		return err
	}
	for o.NextArg() {
		switch word := o.Val(); {
		case word == "burst" && f.Burst == 0:
			f.Burst, err = o.countBehind(count)
		case (word == "delay" || word == "close") && f.OnExcess == "":
			f.OnExcess = word
		case word == "by" && f.By == "":
			err = o.flowBy(&f.By)
		default:
			err = o.Errf("%s: unexpected argument %q", o.name, word)
		}
		if err != nil {
			return err
		}
	}
	return o.noBlock()
}

func (o option) countBehind(count func(option, string) (int, error)) (int, error) {
	if !o.NextArg() {
		return 0, o.Errf("%s: the number behind \"burst\" is missing", o.name)
	}
	return count(o, o.Val())
}

func (o option) flowBy(by *string) error {
	if !o.NextArg() || o.Val() != "socket" && o.Val() != "user" {
		return o.Errf("%s: counts by socket or user", o.name)
	}
	*by = o.Val()
	return nil
}

// countOf reads a number from 1 on.
func countOf(o option, text string) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		return 0, o.Errf("%s: %q is not a number from 1 on", o.name, text)
	}
	return n, nil
}

// sizeOf reads a size from 1 on, such as 64KiB or 1MB.
func sizeOf(o option, text string) (int, error) {
	n, err := humanize.ParseBytes(text)
	if err != nil || n < 1 || n > math.MaxInt32 {
		return 0, o.Errf("%s: %q is not a size such as 64KiB or 1MB (at most 2GiB)", o.name, text)
	}
	return int(n), nil
}

// size is an option with one size.
func (o option) size(value *int64) error {
	var text string
	if err := o.word(&text); err != nil {
		return err
	}
	n, err := humanize.ParseBytes(text)
	if err != nil || n < 1 || n > math.MaxInt64 {
		return o.Errf("%s: %q is not a size such as 64KiB or 1MB", o.name, text)
	}
	*value = int64(n)
	return nil
}
