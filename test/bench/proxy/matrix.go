//go:build linux

package main

import (
	"fmt"
	"strings"
)

// workload is one row of the tables: which way requests go, how many and how large.
type workload struct {
	way
	body    int
	conns   int
	streams int // at one time on each connection
	rate    int // per second; 0: as fast as answers come
}

// key names a workload for the flag -only, such as "2/h1/1024/64/sat".
func (w workload) key() string {
	load := "sat"
	if w.rate > 0 {
		load = fmt.Sprint(w.rate)
	}
	return fmt.Sprintf("%d/%s/%d/%d/%s", w.hops, w.kind, w.body, w.conns*w.streams, load)
}

func (w workload) protocol() string {
	return map[string]string{"h1": "HTTP/1.1", "h2": "HTTP/2", "grpc": "gRPC", "tcp": "TCP", "tls": "mTLS"}[w.kind]
}

func (w workload) size() string {
	if w.body < 1024 {
		return fmt.Sprintf("%d B", w.body)
	}
	return fmt.Sprintf("%d KB", w.body/1024)
}

func (w workload) load() string {
	var b strings.Builder
	if w.rate == 0 {
		b.WriteString("saturated")
	} else {
		fmt.Fprintf(&b, "%d/s", w.rate)
	}
	if w.streams > 1 {
		fmt.Fprintf(&b, ", %d x %d", w.conns, w.streams)
	} else {
		fmt.Fprintf(&b, ", %d", w.conns)
	}
	return b.String()
}

// calls makes a workload of n requests at one time. HTTP/2 has up to 8 of them on a connection.
func calls(hops int, kind string, body, n, rate int) workload {
	w := workload{way{hops, kind}, body, n, 1, rate}
	if kind != "h1" {
		w.streams = min(8, n)
		w.conns = n / w.streams
	}
	return w
}

// workloads are those of a run: the few that say most, or all.
func workloads(full bool) (out []workload) {
	const kb = 1024
	for hops := 1; hops <= 2; hops++ {
		if !full {
			out = append(out, calls(hops, "h1", kb, 64, 0), calls(hops, "h1", kb, 32, 8000), calls(hops, "h1", kb, 32, 1000))
			if hops == 2 {
				out = append(out, calls(2, "h1", 0, 64, 0), calls(2, "h1", 100*kb, 64, 0), calls(2, "grpc", kb, 64, 0))
			}
		} else {
			for _, kind := range []string{"h1", "h2", "grpc"} {
				for _, n := range []int{64, 1, 32, 1000} {
					out = append(out, calls(hops, kind, kb, n, 0))
				}
				out = append(out, calls(hops, kind, 0, 64, 0), calls(hops, kind, 100*kb, 64, 0))
				for _, rate := range []int{8000, 1000, 200} {
					out = append(out, calls(hops, kind, kb, 32, rate))
				}
				out = append(out, calls(hops, kind, kb, 1000, 8000), calls(hops, kind, kb, 1000, 1000))
			}
		}
		out = append(out, workload{way{hops, "tcp"}, 0, 4, 1, 0})
	}
	return append(out, workload{way{2, "tls"}, 0, 8, 1, 0})
}
