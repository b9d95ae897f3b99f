package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/meshagent/meshagent/mesh"
)

// traffic looks at what a DestinationRule says of the calls of a service, beside what the service is.
func (a *analysis) traffic(svc mesh.ServiceName, d *Destination, have *mesh.Service) {
	ports := have.Ports()
	for _, own := range append([]map[uint16]*TrafficPolicy{d.Ports}, subsetPorts(d)...) {
		for port := range own {
			if !slices.Contains(ports, port) {
				a.add(d.Policy, codeNoSuchPort, "spec", "callers use "+strings.Trim(fmt.Sprint(ports), "[]"), "has portLevelSettings for port %d, which %s does not have", port, svc)
			}
		}
	}
	requests := slices.ContainsFunc(ports, func(p uint16) bool { return have.Protocol(p).Carries(true) })
	d.Each(func(t *TrafficPolicy) {
		if t.TLS.On && !svc.IsExternal() {
			a.add(d.Policy, codeTLSWithin, "spec", "remove tls, or declare the host with a ServiceEntry",
				"has TLS settings for %s, a service of the mesh: its calls are mutual TLS anyway, and the settings have no effect", svc)
		}
		if t.Hash != nil && !t.Hash.SourceIP && !requests {
			a.add(d.Policy, codeHashOfNothing, "spec", "write useSourceIp: true", "lets a part of the request decide, and %s does not speak HTTP: its connections go anywhere", svc)
		}
	})
}

func subsetPorts(d *Destination) (out []map[uint16]*TrafficPolicy) {
	for _, s := range d.Subsets {
		out = append(out, s.Ports)
	}
	return out
}
