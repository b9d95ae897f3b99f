package agent

import (
	"context"
	"fmt"
	"time"

	"github.com/meshagent/meshagent/agent/api"
)

// certificateTime bounds how long the store of this host is asked.
const certificateTime = time.Second

// certificateProblems tells, on servers, which Certificates could not be ordered.
func (a *Agent) certificateProblems() (out []api.Problem) {
	if a.service == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), certificateTime)
	defer cancel()
	all, err := a.service.CertificateProblems(ctx)
	if err != nil {
		return []api.Problem{{Subject: "certificates of gateways", Reason: "how their orders stand is not known: " + err.Error()}}
	}
	for _, p := range all {
		reason := p.Reason
		if p.Failures > 0 {
			reason = fmt.Sprintf("not ordered since %s: %s", p.Since.UTC().Format(time.RFC3339), p.Reason)
		}
		hint := ""
		if !p.Next.IsZero() {
			hint = fmt.Sprintf("it is tried again at %s, or when the Certificate changes", p.Next.UTC().Format(time.RFC3339))
		}
		if !p.NotAfter.IsZero() {
			hint += "; gateways show the one that ends at " + p.NotAfter.UTC().Format(time.RFC3339)
		}
		out = append(out, api.Problem{Subject: p.Key.String(), Reason: reason, Hint: hint})
	}
	return out
}
