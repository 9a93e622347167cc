package module

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode"
)

// flagsFile is the name of the Caddyfile that the flags become.
const flagsFile = "flags"

// flagsText is that Caddyfile. Every setting stands on a line of its own, so
// that an error in a line is one in a flag. What an operator wrote stands
// between backticks, where nothing but a backtick means anything; so no value
// can become more than an argument.
type flagsText struct {
	lines []string
	of    map[int]setting // by line, from 1
	err   error           // the first value that could not be written
}

func (c *flagsText) String() string { return strings.Join(c.lines, "\n") + "\n" }

// write adds lines of our own.
func (c *flagsText) write(lines ...string) { c.lines = append(c.lines, lines...) }

// open opens a block behind the option that was written last.
func (c *flagsText) open() { c.lines[len(c.lines)-1] += " {" }

// option adds the line of a setting.
func (c *flagsText) option(one setting, option string, arguments ...string) {
	words := []string{option}
	for _, argument := range arguments {
		if err := quotable(argument); err != nil && c.err == nil {
			c.err = one.wrap(err)
		}
		words = append(words, "`"+argument+"`")
	}
	c.write(strings.TrimSpace(strings.Join(words, " ")))
	c.of[len(c.lines)] = one
}

// quotable refuses what means something even between backticks.
func quotable(argument string) error {
	switch {
	case strings.ContainsFunc(argument, unicode.IsControl):
		return errNotForFlags
	case strings.Contains(argument, "`"):
		return errBacktick
	case strings.Contains(argument, "{$"): // filled in before anything else, quotes or not
		return errCaddyfileEnv
	}
	return nil
}

// Where an error of the adapter says that it is, and what it says first.
var (
	adaptWhere = regexp.MustCompile(`(?:, at )?` + flagsFile + `:(\d+)(?: import chain .*)?:? ?`)
	adaptWhat  = regexp.MustCompile(`^(?:parsing caddyfile tokens for '[^']*': )+`)
)

// blame makes an error about a line of the text one about a flag.
func (s *sidecar) blame(c *flagsText, err error) error {
	said := adaptWhat.ReplaceAllString(err.Error(), "")
	if at := adaptWhere.FindStringSubmatch(said); at != nil {
		line, _ := strconv.Atoi(at[1])
		said = adaptWhere.ReplaceAllString(said, "")
		if one, ok := c.of[line]; ok {
			option, _, _ := strings.Cut(c.lines[line-1], " ")
			said = strings.TrimPrefix(said, fmt.Sprintf("%s %q: ", option, one.text))
			return s.blameOption(strings.TrimPrefix(said, option+": "), one)
		}
	}
	for line := range c.lines { // Caddy does not always say where
		for _, name := range names(c.of[line+1].text) {
			if strings.Contains(said, "'"+name+"'") {
				return c.of[line+1].wrap(errors.New(said))
			}
		}
	}
	return errors.New(said)
}

// optionSaid is the option that an error begins with.
var optionSaid = regexp.MustCompile(`^(?:[a-z]+ing )?([a-z_]+)\b`)

// blameOption names the flag of the option that an error begins with, if it
// is another than the one that is blamed.
func (s *sidecar) blameOption(said string, otherwise setting) error {
	option := optionSaid.FindStringSubmatch(said)
	if option == nil {
		return otherwise.wrap(errors.New(said))
	}
	for _, settings := range s.settings {
		if f := settings[0].flag; f.option == option[1] && f != otherwise.flag {
			return settings[0].wrap(errors.New(strings.TrimPrefix(said, f.option+": ")))
		}
	}
	return otherwise.wrap(errors.New(said))
}

// loading are errors of a config that was adapted and does not load, by what
// stands before the part that a user of flags can make use of.
var loading = []struct {
	before *regexp.Regexp
	flag   string
}{
	{regexp.MustCompile(`^.*provision http\.handlers\.ws_gate: (?:issuer "[^"]*": )?`), "issuer"},
	{regexp.MustCompile(`^.*provision http\.ip_sources\.static: `), "trusted-proxies"},
	{regexp.MustCompile(`^.*(?:listening on |listen )`), "from"},
}

// blameLoading names the flag that is to blame for that the config does not
// load, where that can be told.
func (s *sidecar) blameLoading(err error) error {
	for _, l := range loading {
		if before := l.before.FindString(err.Error()); before != "" {
			return s.blameOption(strings.TrimPrefix(err.Error(), before), s.first(l.flag, s.defaultOf(l.flag)))
		}
	}
	return err
}

// defaultOf is what stands for a flag that does not.
func (s *sidecar) defaultOf(flag string) string {
	switch flag {
	case "from":
		return s.from()
	case "issuer":
		return AnyIssuer
	}
	return ""
}
