package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// ticks is the unit of times in /proc/<pid>/stat, USER_HZ, which is 100 on
// every Linux that Go runs on.
const ticks = 100

// status is what /proc tells of a process and its children.
type status struct {
	cpu time.Duration // user and system time
	rss int           // bytes; shared pages count once a process
}

// family reads the status of pid and of all its descendants.
func family(pid int) (status, error) {
	var sum status
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return sum, err
	}
	parent := make(map[int]int)
	each := make(map[int]status)
	for _, file := range stats {
		content, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended meanwhile
		}
		// The name, in parentheses, may hold anything.
		text := string(content)
		id, err := strconv.Atoi(text[:strings.IndexByte(text, ' ')])
		if err != nil {
			continue
		}
		fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
		if len(fields) < 22 {
			continue
		}
		number := func(i int) int { // by the numbering of proc(5)
			n, _ := strconv.Atoi(fields[i-3])
			return n
		}
		parent[id] = number(4)
		each[id] = status{
			cpu: time.Duration(number(14)+number(15)) * time.Second / ticks,
			rss: number(24) * os.Getpagesize(),
		}
	}
	if _, ok := each[pid]; !ok {
		return sum, fmt.Errorf("process %d is gone", pid)
	}
	for id, s := range each {
		for p := id; p > 1; p = parent[p] {
			if p == pid {
				sum.cpu += s.cpu
				sum.rss += s.rss
				break
			}
		}
	}
	return sum, nil
}
