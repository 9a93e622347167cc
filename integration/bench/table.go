package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// table writes the figures as Markdown, each with its ratio to plain Caddy.
func table(w io.Writer, proxies []*proxy) {
	base := proxies[slices.IndexFunc(proxies, func(p *proxy) bool { return p.name == plain })]
	columns := []string{"proxy", "KiB per idle socket", "the same after a GC", "live KiB per idle socket"}
	for _, l := range loads {
		columns = append(columns, l.name)
	}
	row := func(cells []string) { fmt.Fprintf(w, "| %s |\n", strings.Join(cells, " | ")) }
	row(columns)
	row(slices.Repeat([]string{"---"}, len(columns)))
	for _, p := range proxies {
		cells := []string{p.name}
		cells = append(cells, figure(p.memory.rss, p.memory.rss/base.memory.rss))
		if p.admin == "" { // no garbage collector, or none that can be asked
			cells = append(cells, "–", "–")
		} else {
			cells = append(cells, figure(p.memory.after, p.memory.after/base.memory.after), figure(p.memory.live, p.memory.live/base.memory.live))
		}
		for _, l := range loads {
			var ratios []float64
			for round, f := range p.figures[l.name] {
				ratios = append(ratios, f/base.figures[l.name][round])
			}
			cells = append(cells, figure(median(p.figures[l.name]), median(ratios)))
		}
		row(cells)
	}
	fmt.Fprintln(w, "\nMedians over the rounds; in parentheses the ratio to plain Caddy, round by round.")
}

func figure(value, ratio float64) string {
	digits := 0
	switch {
	case value < 2:
		digits = 3
	case value < 100:
		digits = 1
	}
	return fmt.Sprintf("%.*f (%.2f)", digits, value, ratio)
}

func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	mid := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[mid]
	}
	return (sorted[mid-1] + sorted[mid]) / 2
}
