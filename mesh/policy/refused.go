package policy

// refused are kinds that users of Istio and Kubernetes have and meshagent does not act on, by group and kind, with what to use instead.
var refused = map[string]string{
	"networking.istio.io/EnvoyFilter":      "there is no Envoy to patch: say what it is for, routes, limits, headers, with VirtualService and DestinationRule",
	"networking.istio.io/ProxyConfig":      "one agent serves all workloads of a host: set it in the agent's configuration, docs/hosts.md",
	"networking.istio.io/WorkloadGroup":    "a host with an agent registers its services itself, docs/services.md; for one without an agent write a WorkloadEntry",
	"extensions.istio.io/WasmPlugin":       "no code is loaded into the data path: run a service that does it and route calls there",
	"extensions.istio.io/TrafficExtension": "no code is loaded into the data path: run a service that does it and route calls there",
	"telemetry.istio.io/Telemetry":         "every call is logged and counted: proxy.accessLog of the agent's configuration says where, docs/metrics.md what",
	"install.istio.io/IstioOperator":       "there is no control plane to install: meshagent init makes the first server, docs/joining.md",
	"authentication.istio.io/Policy":       "write a PeerAuthentication or RequestAuthentication of security.istio.io/v1",
	"authentication.istio.io/MeshPolicy":   "calls between hosts are always by mutual TLS: remove it",
	"rbac.istio.io/ServiceRole":            "write an AuthorizationPolicy of security.istio.io/v1",
	"rbac.istio.io/ServiceRoleBinding":     "write an AuthorizationPolicy of security.istio.io/v1",
	"rbac.istio.io/ClusterRbacConfig":      "write an AuthorizationPolicy of security.istio.io/v1 into namespace " + RootNamespace,
	"config.istio.io/rule":                 "Mixer is gone from Istio, too: write an AuthorizationPolicy",

	gatewayGroup + "/UDPRoute":                          "UDP is not carried: let clients reach the hosts directly by NODE.node.mesh",
	gatewayGroup + "/ListenerSet":                       "write the listeners into the Gateway",
	gatewayGroup + "/BackendLBPolicy":                   "write loadBalancer.consistentHash of a DestinationRule, or sessionPersistence of the route's rule",
	"gateway.networking.x-k8s.io/XListenerSet":          "write the listeners into the Gateway",
	"gateway.networking.x-k8s.io/XBackendTrafficPolicy": "write connectionPool, outlierDetection or retryBudget of a DestinationRule",
	"gateway.networking.x-k8s.io/XMesh":                 "there is one mesh, and its hosts join it: remove it",

	"/Service":                        "services register where they run: a unit's section [X-Mesh] or a file of services.d, docs/services.md",
	"/Endpoints":                      "write a ServiceEntry with endpoints, or register the service where it runs, docs/services.md",
	"discovery.k8s.io/EndpointSlice":  "write a ServiceEntry with endpoints, or register the service where it runs, docs/services.md",
	"networking.k8s.io/Ingress":       "write a Gateway and an HTTPRoute of " + gatewayGroup + ", or a Gateway and a VirtualService of networking.istio.io",
	"networking.k8s.io/NetworkPolicy": "write an AuthorizationPolicy of security.istio.io/v1: it knows callers by their certificates, not by addresses",
	"/Namespace":                      "namespaces are there as soon as a service or policy is in one: remove it",
	"/ServiceAccount":                 "a service's account is in its definition, docs/services.md: remove it",
	"/Pod":                            "meshagent runs no containers: systemd runs the service, a section [X-Mesh] of its unit registers it, docs/services.md",
	"apps/Deployment":                 "meshagent runs no containers: systemd runs the service, a section [X-Mesh] of its unit registers it, docs/services.md",
	"apps/StatefulSet":                "meshagent runs no containers: systemd runs the service, a section [X-Mesh] of its unit registers it, docs/services.md",
	"apps/DaemonSet":                  "meshagent runs no containers: systemd runs the service, a section [X-Mesh] of its unit registers it, docs/services.md",
	"apiextensions.k8s.io/CustomResourceDefinition": "the kinds are built in: remove it",
}
