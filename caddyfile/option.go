package caddyfile

import (
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// option is one option of a block: its dispenser holds its tokens and no
// others, and stands on its name.
type option struct {
	*caddyfile.Dispenser
	name string
}

// back stands on the option's name again, so that an error found at its end
// names its line.
func (o option) back() option {
	o.Reset()
	o.Next()
	return o
}

// noBlock refuses a block, and arguments that nobody took.
func (o option) noBlock() error {
	if o.NextArg() {
		if o.name == "secret" {
			return o.Errf("secret: unexpected argument") // it may be a part of the secret
		}
		return o.Errf("%s: unexpected argument %q", o.name, o.Val())
	}
	if o.NextBlock(0) {
		return o.back().Errf("%s: takes no block", o.name)
	}
	return nil
}

// flag is an option without arguments.
func (o option) flag(set *bool) error {
	*set = true
	return o.noBlock()
}

// word is an option with one argument.
func (o option) word(value *string) error {
	if !o.NextArg() {
		return o.Errf("%s: an argument is missing", o.name)
	}
	if *value = o.Val(); *value == "" {
		return o.Errf("%s: is empty", o.name)
	}
	return o.noBlock()
}

// oneOf is a word from a list.
func (o option) oneOf(value *string, words ...string) error {
	if err := o.word(value); err != nil {
		return err
	}
	for _, word := range words {
		if *value == word {
			return nil
		}
	}
	return o.Errf("%s: %q is not one of %s", o.name, *value, strings.Join(words, ", "))
}

// checked is a word that validate accepts. Placeholders are known only when
// the config runs, and are checked then.
func (o option) checked(value *string, validate func(string) error) error {
	if err := o.word(value); err != nil {
		return err
	}
	return o.valid(*value, validate)
}

// words is an option that may stand repeatedly, with one or more arguments.
func (o option) words(values *[]string, validate func(string) error) error {
	args := o.RemainingArgs()
	if len(args) == 0 {
		return o.Errf("%s: an argument is missing", o.name)
	}
	for _, arg := range args {
		if err := o.valid(arg, validate); err != nil {
			return err
		}
	}
	*values = append(*values, args...)
	return o.noBlock()
}

// names are words of which each may stand once.
func (o option) names(values *[]string, validate func(string) error) error {
	before := len(*values)
	if err := o.words(values, validate); err != nil {
		return err
	}
	for i, name := range (*values)[before:] {
		if slices.Contains((*values)[:before+i], name) {
			return o.back().Errf("%s: %q is there already", o.name, name)
		}
	}
	return nil
}

func (o option) valid(value string, validate func(string) error) error {
	if strings.Contains(value, "{") {
		return nil
	}
	if err := validate(value); err != nil {
		return o.Errf("%s: %v", o.name, err)
	}
	return nil
}

// duration is a span of time that is not negative.
func (o option) duration(value *caddy.Duration) error {
	var text string
	if err := o.word(&text); err != nil {
		return err
	}
	d, err := caddy.ParseDuration(text)
	if err != nil || d < 0 {
		return o.Errf("%s: %q is not a duration such as 30s or 5m", o.name, text)
	}
	*value = caddy.Duration(d)
	return nil
}

// optionalDuration is a duration for which 0 has a meaning of its own.
func (o option) optionalDuration(value **caddy.Duration) error {
	if *value != nil {
		return o.Errf("%s: is set already", o.name)
	}
	*value = new(caddy.Duration)
	return o.duration(*value)
}

// atLeast is a duration with a lower bound.
func (o option) atLeast(value *caddy.Duration, least time.Duration) error {
	if err := o.duration(value); err != nil {
		return err
	}
	if time.Duration(*value) < least {
		return o.Errf("%s: %s is less than %s", o.name, time.Duration(*value), least)
	}
	return nil
}
