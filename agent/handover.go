package agent

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/meshagent/meshagent/internal/run"
	"github.com/meshagent/meshagent/systemd"
)

// # Handing over
//
// An agent makes room for another program, most often a newer one, while calls go on:
//
//  1. It starts the program as its child, which reads its configuration and what makes the host a member, and says that it is prepared. One that
//     is not changes nothing.
//  2. The old agent stops whatever writes to the data directory, or may exist once on a host: store, gossip, API, checks. Its data path goes on with
//     the last snapshot. It gives the other its sockets, and the data directory.
//  3. The new agent starts as after any restart. When it serves, it says so: both accept calls for a moment.
//  4. The old one accepts no more, and ends when the calls that it has are over, a minute later at most.

// preparing and startingUp bound steps 1 and 3.
const (
	preparing  = 30 * time.Second
	startingUp = 90 * time.Second
)

// dataPath are the parts that go on until another agent serves. The proxy and what it needs, as far as it does not write.
var dataPath = []string{"front", "catalog", "credentials", "proxy", "names", "dns", "mesh port"}

// HandOver asks the agent to make room for the program that is installed now. It returns at once; what becomes of it is in the log.
// From any goroutine.
func (a *Agent) HandOver() {
	select {
	case a.handing <- struct{}{}:
	default: // it was asked already
	}
}

// handOver makes room. When it failed and the agent goes on as before, over is false. What is carried may be carried until the end of until.
func (a *Agent) handOver(ctx, until context.Context, g *run.Group) (over bool, err error) {
	a.log.Info("handing over to another process")
	systemd.Notify("RELOADING=1")
	s, err := startSuccessor(ctx)
	if err != nil {
		systemd.Notify("READY=1")
		return false, err
	}
	defer s.close()
	a.proxy.Keep()
	a.gossip.HandOver()
	g.Stop(func(name string) bool { return !slices.Contains(dataPath, name) })
	a.release()
	systemd.Notify(fmt.Sprintf("MAINPID=%d", s.pid())) // from now on its end is the service's end
	verdicts, _ := a.checks.Load()
	if err := s.give(a.sockets, verdicts); err != nil {
		return true, err
	}
	sctx, cancel := context.WithTimeout(ctx, startingUp)
	defer cancel()
	if err := s.await(sctx, ready); err != nil {
		return true, fmt.Errorf("the other process did not get ready: %w", err)
	}
	a.log.Info("another process serves: this one ends with the calls that it has", "pid", s.pid())
	a.meshPort.HandOver()
	a.proxy.HandOver(until)
	return true, nil
}

// release gives up what one agent of a host can have.
func (a *Agent) release() {
	for _, c := range slices.Backward(a.alone) {
		c()
	}
	a.alone = nil
}
