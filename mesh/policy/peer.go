package policy

import (
	"fmt"
	"maps"
	"slices"

	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy/istio"
)

// checkPeer validates a PeerAuthentication. It changes nothing: calls between hosts have no way but mutual TLS, and callers of the same
// host are known by the kernel, so that STRICT is always so, and a mode that allows less cannot be had.
func checkPeer(key mesh.PolicyKey, s *istio.PeerAuthentication) []fieldError {
	c := &compiler{key: key}
	if s.Selector != nil {
		if err := mesh.Labels(s.Selector.MatchLabels).Check(); err != nil {
			c.fail("selector.matchLabels", "", "%v", err)
		}
	}
	mode := func(path, m string) {
		switch m {
		case "", "UNSET", "STRICT":
		case "PERMISSIVE", "DISABLE":
			c.fail(path, "write STRICT, and let who is not in the mesh come through a Gateway", "%s: no port of a service is open to callers without a certificate", m)
		default:
			c.fail(path, "write STRICT", "%q is none of UNSET, STRICT, PERMISSIVE, DISABLE", m)
		}
	}
	if s.MTLS != nil {
		mode("mtls.mode", s.MTLS.Mode)
	}
	for _, port := range slices.Sorted(maps.Keys(s.PortLevelMTLS)) {
		if _, err := istio.ParsePort(port); err != nil {
			c.fail("portLevelMtls."+port, "", "%v", err)
		}
		mode(fmt.Sprintf("portLevelMtls.%s.mode", port), s.PortLevelMTLS[port].Mode)
	}
	if len(s.PortLevelMTLS) > 0 && s.Selector == nil {
		c.fail("portLevelMtls", "add a selector", "ports are those of the services that a selector picks")
	}
	return c.errs
}
