//go:build profile

package main

import (
	"fmt"
	"os"
	"os/signal"
	"runtime/pprof"
	"syscall"
)

// A program with this tag writes a CPU profile of its whole life, until it is told to end, into the directory CPU_PROFILES: see
// PROFILE in test/bench/proxy/run.sh, which makes cpu.pgo of them.
func init() {
	dir := os.Getenv("CPU_PROFILES")
	if dir == "" {
		return
	}
	f, err := os.Create(fmt.Sprintf("%s/%d.prof", dir, os.Getpid()))
	if err == nil {
		err = pprof.StartCPUProfile(f)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "profile:", err)
		os.Exit(1)
	}
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM)
	go func() {
		<-end
		pprof.StopCPUProfile()
		f.Close()
	}()
}
