package agent

import (
	"context"
	"fmt"

	"github.com/meshagent/meshagent/agent/control"
	"github.com/meshagent/meshagent/agent/workloadapi"
	"github.com/meshagent/meshagent/ca"
	"github.com/meshagent/meshagent/internal/unixsocket"
	"github.com/meshagent/meshagent/mesh"
)

// openWorkloadAPI makes what gives applications certificates of their own, where the configuration asks for it.
func (a *Agent) openWorkloadAPI() {
	if a.cfg.WorkloadAPI.Socket == "" {
		return
	}
	a.workloads = workloadapi.New(workloadapi.Config{TrustDomain: a.node.TrustDomain(), Certs: a.appLeaves, Identify: a.callers.Identify, Log: a.log, Metrics: a.metrics,
		IssueToken: func(ctx context.Context, id mesh.Identity, audience []string) (ca.Token, error) {
			return (*a.control.Load()).IssueToken(ctx, id, audience)
		}})
	a.workloadTask = a.ready.Task("the Workload API")
}

// serveWorkloads serves the Workload API until ctx ends. Everybody of the host may connect: who is which service the kernel says.
func (a *Agent) serveWorkloads(ctx context.Context) error {
	if a.workloads == nil {
		<-ctx.Done()
		return nil
	}
	ln, err := unixsocket.Listen(a.cfg.WorkloadAPI.Socket, 0o666)
	if err != nil {
		return fmt.Errorf("workloadAPI.socket: %w", err)
	}
	a.workloadTask()
	return a.workloads.Run(ctx, ln)
}

// wantLeavesLocked makes the certificates of this host's services be at hand, as a version of the registry has them. Those for
// applications are had when one asks. The caller holds publishing.
func (a *Agent) wantLeavesLocked(ids []mesh.Identity, version uint64) {
	a.leaves.Want(ids)
	a.appLeaves.Keep(ids)
	if a.workloads != nil && version != a.recheckedAt {
		a.recheckedAt = version
		a.workloads.Recheck() // who calls may be another service now, or none
	}
}

func (a *Agent) setBundle(b *mesh.TrustBundle) {
	a.leaves.SetBundle(b)
	a.appLeaves.SetBundle(b)
}

// takeFederated gives the roots of other trust domains to applications that ask the Workload API.
func (a *Agent) takeFederated(all []control.Federation) {
	var bs []*mesh.TrustBundle
	for _, f := range all {
		b, err := ca.DecodeBundle(f.Bundle)
		if err != nil || b.TrustDomain != f.TrustDomain || b.TrustDomain == a.node.TrustDomain() {
			a.log.Error("roots of another trust domain not taken", "trustDomain", f.TrustDomain, "err", err)
			continue
		}
		bs = append(bs, b)
	}
	a.federated.Store(&all)
	a.leaves.SetFederated(bs)
	a.appLeaves.SetFederated(bs)
	if a.proxy != nil { // else there are no connections yet
		a.proxy.RecheckPeers()
	}
}

func (a *Agent) federations() []control.Federation {
	if f := a.federated.Load(); f != nil {
		return *f
	}
	return nil
}

func (a *Agent) setRevoked(r *ca.Revoked) {
	a.leaves.SetRevoked(r)
	a.appLeaves.SetRevoked(r)
}
