//go:build linux

package main

import (
	"os"
	"slices"
	"testing"
	"time"
)

func TestParseStat(t *testing.T) {
	for _, c := range []struct {
		in   string
		want procStat
		err  string
	}{
		{in: "31 (nginx) S 30 31 31 0 -1 4194560 236 0 0 0 17 42 5 6 20 0 1 0 1441 11554816 532", want: procStat{30, 17, 42}},
		{in: "31 (a ) R 9 (b) S 30 31 31 0 -1 4194560 236 0 0 0 17 42 5 6 20", want: procStat{30, 17, 42}},
		{in: "31 nginx S 30", err: `"31 nginx S 30" is no line of /proc/PID/stat`},
		{in: "31 (nginx) S 30 31", err: `"31 (nginx) S 30 31" is no line of /proc/PID/stat`},
		{in: "31 (nginx) S x 31 31 0 -1 4194560 236 0 0 0 17 42 5", err: `strconv.Atoi: parsing "x": invalid syntax`},
	} {
		got, err := parseStat(c.in)
		if text := errText(err); got != c.want && c.err == "" || text != c.err {
			t.Errorf("%q: %+v, %q; want %+v, %q", c.in, got, text, c.want, c.err)
		}
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestDescend(t *testing.T) {
	got := descend(5, map[int][]int{1: {5, 6}, 5: {9, 7}, 7: {8}, 6: {10}})
	if want := []int{5, 7, 8, 9}; !slices.Equal(got, want) {
		t.Errorf("descendants of 5 are %v, want %v", got, want)
	}
}

func TestParseRollup(t *testing.T) {
	const good = "00400000-7ffe rollup\nRss:               13592 kB\nPss:                8638 kB\nPss_Dirty:          6868 kB\n"
	m, err := parseRollup(good)
	if want := (memory{13592 << 10, 8638 << 10}); m != want || err != nil {
		t.Errorf("%+v, %v; want %+v", m, err, want)
	}
	for in, want := range map[string]string{
		"Rss: 1 kB\n":           "smaps_rollup: Rss or Pss is missing",
		"Rss: 1 MB\nPss: 1 kB":  `smaps_rollup: "Rss: 1 MB" is no size`,
		"Rss: one kB\nPss:1 kB": `smaps_rollup: "Rss: one kB" is no size`,
	} {
		if _, err := parseRollup(in); errText(err) != want {
			t.Errorf("%q: %v, want %s", in, err, want)
		}
	}
}

func TestParseBusy(t *testing.T) {
	got, err := parseBusy("cpu  100 20 30 4000 500 6 7 8 90 10\ncpu0 1 2 3\n")
	if want := int64(100 + 20 + 30 + 6 + 7 + 8); got != want || err != nil {
		t.Errorf("busy for %d ticks, %v; want %d", got, err, want)
	}
	if _, err := parseBusy("cpu 1 2 3\n"); errText(err) != `"cpu 1 2 3" is no first line of /proc/stat` {
		t.Error(err)
	}
	if _, err := parseBusy("cpu 1 2 x 4 5 6 7 8\n"); err == nil {
		t.Error("x is a number")
	}
}

// The process's clock and /proc/PID/stat are one account.
func TestCPUOfIsWhatStatSays(t *testing.T) {
	pid := os.Getpid()
	for end := time.Now().Add(100 * time.Millisecond); time.Now().Before(end); {
	}
	low, err := readStat(pid)
	if err != nil {
		t.Fatal(err)
	}
	cpu, err := cpuOf([]int{pid})
	if err != nil {
		t.Fatal(err)
	}
	high, err := readStat(pid)
	if err != nil {
		t.Fatal(err)
	}
	const rounded = 3 * tick // user and system are each cut to a tick
	if least, most := time.Duration(low.user+low.system)*tick, time.Duration(high.user+high.system)*tick+rounded; cpu < least || cpu > most {
		t.Errorf("the clock says %v, stat between %v and %v", cpu, least, most)
	}
	if _, err := cpuOf([]int{1 << 22}); err == nil {
		t.Error("a process that does not exist has a clock")
	}
}
