package istio

import (
	"errors"

	"github.com/meshagent/meshagent/internal/strictyaml"
)

// ServiceEntry declares a service that no agent runs, or not agents alone.
type ServiceEntry struct {
	Hosts            []string          `yaml:"hosts"`
	Addresses        []string          `yaml:"addresses"` // one of 127.0.0.0/8
	Ports            []ServicePort     `yaml:"ports"`
	Location         string            `yaml:"location"`
	Resolution       string            `yaml:"resolution"`
	Endpoints        []WorkloadEntry   `yaml:"endpoints"`
	WorkloadSelector *WorkloadSelector `yaml:"workloadSelector"`
	ExportTo         []string          `yaml:"exportTo"`
	SubjectAltNames  []string          `yaml:"subjectAltNames"`
}

// ServicePort is a port of a ServiceEntry.
type ServicePort struct {
	Number     uint16 `yaml:"number"`
	Protocol   string `yaml:"protocol"`
	Name       string `yaml:"name"`
	TargetPort uint16 `yaml:"targetPort"`
}

// WorkloadEntry is an instance on a host without an agent.
type WorkloadEntry struct {
	Address        string            `yaml:"address"`
	Ports          map[string]uint16 `yaml:"ports"`
	Labels         map[string]string `yaml:"labels"`
	Network        OneNetwork        `yaml:"network"`
	Locality       string            `yaml:"locality"`
	Weight         *uint32           `yaml:"weight"`
	ServiceAccount Unproven          `yaml:"serviceAccount"`
}

// WorkloadSelector picks by labels.
type WorkloadSelector struct {
	Labels map[string]string `yaml:"labels"`
}

// OneNetwork refuses the name of a network.
type OneNetwork struct{}

// UnmarshalNode refuses the field.
func (*OneNetwork) UnmarshalNode(*strictyaml.Node) error {
	return errors.New("a mesh of meshagent is one network, in which hosts reach each other directly: remove it, and give an address that every host can reach")
}

// Unproven refuses an identity that nothing proves.
type Unproven struct{}

// UnmarshalNode refuses the field.
func (*Unproven) UnmarshalNode(*strictyaml.Node) error {
	return errors.New("a host without an agent has no certificate of the mesh that proves it: remove it, or run an agent there and define the service on it")
}

// Sidecar says which services the workloads of a namespace may call.
type Sidecar struct {
	WorkloadSelector      *WorkloadSelector      `yaml:"workloadSelector"`
	Ingress               NoListeners            `yaml:"ingress"`
	Egress                []SidecarEgress        `yaml:"egress"`
	InboundConnectionPool NoInboundPool          `yaml:"inboundConnectionPool"`
	OutboundTrafficPolicy *OutboundTrafficPolicy `yaml:"outboundTrafficPolicy"`
}

// SidecarEgress names services.
type SidecarEgress struct {
	Port        NoListeners `yaml:"port"`
	Bind        NoListeners `yaml:"bind"`
	CaptureMode NoListeners `yaml:"captureMode"`
	Hosts       []string    `yaml:"hosts"`
}

// OutboundTrafficPolicy says what becomes of calls to hosts that nothing declares.
type OutboundTrafficPolicy struct {
	Mode        string        `yaml:"mode"`
	EgressProxy NoEgressProxy `yaml:"egressProxy"`
}

// NoListeners refuses listeners of single workloads.
type NoListeners struct{}

// UnmarshalNode refuses the field.
func (*NoListeners) UnmarshalNode(*strictyaml.Node) error {
	return errors.New("workloads have no listeners of their own: one agent serves all of a host; remove it, and set ports in the definition of the service")
}

// NoInboundPool refuses limits of a workload.
type NoInboundPool struct{}

// UnmarshalNode refuses the field.
func (*NoInboundPool) UnmarshalNode(*strictyaml.Node) error {
	return errors.New("limits are the destination's: remove it, and write trafficPolicy.connectionPool of a DestinationRule")
}

// NoEgressProxy refuses to send on what nothing declares.
type NoEgressProxy struct{}

// UnmarshalNode refuses the field.
func (*NoEgressProxy) UnmarshalNode(*strictyaml.Node) error {
	return errors.New("the agent carries only calls of hosts that are declared: remove it, declare the hosts with a ServiceEntry, and route them with a VirtualService")
}
