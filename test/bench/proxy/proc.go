//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

// procStat is what /proc/PID/stat says: user and system in ticks of 10 ms.
type procStat struct {
	parent       int
	user, system int64
}

// parseStat reads a line of /proc/PID/stat. The command's name may hold anything, also spaces and parentheses.
func parseStat(s string) (p procStat, err error) {
	i := strings.LastIndexByte(s, ')')
	f := strings.Fields(s[i+1:])
	if i < 0 || len(f) < 13 {
		return p, fmt.Errorf("%.80q is no line of /proc/PID/stat", s)
	}
	var errs [3]error
	p.parent, errs[0] = strconv.Atoi(f[1])
	p.user, errs[1] = strconv.ParseInt(f[11], 10, 64)
	p.system, errs[2] = strconv.ParseInt(f[12], 10, 64)
	return p, errors.Join(errs[:]...)
}

func readStat(pid int) (procStat, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return procStat{}, err
	}
	return parseStat(string(b))
}

// family returns a process and all its descendants, as they are now.
func family(pid int) ([]int, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	children := map[int][]int{}
	for _, d := range dirs {
		n, err := strconv.Atoi(filepath.Base(d))
		if err != nil {
			continue
		}
		if s, err := readStat(n); err == nil { // it may have ended
			children[s.parent] = append(children[s.parent], n)
		}
	}
	return descend(pid, children), nil
}

func descend(pid int, children map[int][]int) []int {
	all := []int{pid}
	for i := 0; i < len(all); i++ {
		all = append(all, children[all[i]]...)
	}
	slices.Sort(all)
	return all
}

// cpuOf returns the processor time of processes. It is what /proc/PID/stat calls user and system together, from the process's clock,
// which is the same account in nanoseconds: at 1,000 requests per second a tick of 10 ms is too coarse.
func cpuOf(pids []int) (sum time.Duration, err error) {
	for _, pid := range pids {
		const cpuClockSched = 2
		var ts syscall.Timespec
		clock := uintptr(^pid<<3 | cpuClockSched)
		if _, _, errno := syscall.Syscall(syscall.SYS_CLOCK_GETTIME, clock, uintptr(unsafe.Pointer(&ts)), 0); errno != 0 {
			return 0, fmt.Errorf("clock of process %d: %w", pid, errno)
		}
		sum += time.Duration(ts.Nano())
	}
	return sum, nil
}

// memory is resident memory in bytes. In pss a page that processes share counts in parts.
type memory struct{ rss, pss int64 }

// parseRollup reads /proc/PID/smaps_rollup.
func parseRollup(s string) (m memory, err error) {
	for line := range strings.Lines(s) {
		name, rest, _ := strings.Cut(line, ":")
		var to *int64
		switch name {
		case "Rss":
			to = &m.rss
		case "Pss":
			to = &m.pss
		default:
			continue
		}
		kb, ok := strings.CutSuffix(strings.TrimSpace(rest), " kB")
		n, err := strconv.ParseInt(kb, 10, 64)
		if err != nil || !ok {
			return m, fmt.Errorf("smaps_rollup: %q is no size", strings.TrimSpace(line))
		}
		*to = n << 10
	}
	if m.rss == 0 || m.pss == 0 {
		return m, errors.New("smaps_rollup: Rss or Pss is missing")
	}
	return m, nil
}

func memoryOf(pids []int) (sum memory, err error) {
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			return sum, err
		}
		m, err := parseRollup(string(b))
		if err != nil {
			return sum, err
		}
		sum.rss += m.rss
		sum.pss += m.pss
	}
	return sum, nil
}

// parseBusy reads how long all processors were busy, in ticks, from /proc/stat: all but idle and waiting for disks.
func parseBusy(s string) (ticks int64, err error) {
	line, _, _ := strings.Cut(s, "\n")
	f := strings.Fields(line)
	if len(f) < 9 || f[0] != "cpu" {
		return 0, fmt.Errorf("%.80q is no first line of /proc/stat", line)
	}
	for i, v := range f[1:9] { // guest time is part of user time
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/stat: %w", err)
		}
		if i != 3 && i != 4 {
			ticks += n
		}
	}
	return ticks, nil
}

const tick = 10 * time.Millisecond // of /proc on every Linux

func busy() (time.Duration, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	n, err := parseBusy(string(b))
	return time.Duration(n) * tick, err
}

// value returns what a file such as /proc/cpuinfo says first of a name.
func value(file, name string) string {
	b, _ := os.ReadFile(file)
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == name {
			return strings.TrimSpace(v)
		}
	}
	return "unknown"
}
