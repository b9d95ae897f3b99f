// Package systemd is where the host's service manager is met: readiness and watchdog, which systemd unit owns the other end of
// a connection (asked of the kernel, so that no caller can lie about it), and the files that a host installs. It is the home of
// go-systemd, sock_diag and cgroupfs. Imported by agent.
//
// Everything but Caller and PeerProcess works, or does nothing, on every system.
package systemd

import (
	"context"
	_ "embed" // of the files below
	"fmt"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// Unit is the agent's unit file, /usr/lib/systemd/system/meshagent.service.
//
//go:embed meshagent.service
var Unit string

// CaptureUnit leads calls by address to the agent, /usr/lib/systemd/system/meshagent-capture.service.
//
//go:embed meshagent-capture.service
var CaptureUnit string

// Sysusers makes the unit's user, /usr/lib/sysusers.d/meshagent.conf.
//
//go:embed meshagent.sysusers
var Sysusers string

// ResolvedDropIn makes systemd-resolved ask the agent for names below mesh., /etc/systemd/resolved.conf.d/meshagent.conf.
//
//go:embed resolved.conf
var ResolvedDropIn string

// Notify tells the service manager of a state such as READY=1. Without a service manager it does nothing. A state that cannot
// be delivered is dropped: the manager misses it and says so itself.
func Notify(state string) { _, _ = daemon.SdNotify(false, state) }

// Watchdog is a component: it tells the service manager twice in each period of its watchdog that the process is well, unless
// check says otherwise. A check that keeps failing, or that hangs, gets the process killed and started anew. Without a watchdog
// it waits for the end of ctx.
func Watchdog(ctx context.Context, check func() error) error {
	period, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return fmt.Errorf("the environment of the service manager: %w", err)
	}
	if period == 0 {
		<-ctx.Done()
		return nil
	}
	return watch(ctx, period/2, check, func() { Notify(daemon.SdNotifyWatchdog) })
}

func watch(ctx context.Context, every time.Duration, check func() error, ping func()) error {
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		if check() == nil {
			ping()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}
