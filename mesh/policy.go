package mesh

import (
	"cmp"
	"strings"
)

// PolicyKey names one resource. The API version is not part of it: networking.istio.io/v1 and v1beta1 of one name are one.
type PolicyKey struct {
	Group     string `json:"group"` // networking.istio.io
	Kind      string `json:"kind"`  // VirtualService
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
}

// String returns group/kind/namespace/name.
func (k PolicyKey) String() string {
	return strings.Join([]string{k.Group, k.Kind, k.Namespace, k.Name}, "/")
}

// Compare orders by group, kind, namespace, name.
func (k PolicyKey) Compare(l PolicyKey) int {
	return cmp.Or(strings.Compare(k.Group, l.Group), strings.Compare(k.Kind, l.Kind),
		strings.Compare(k.Namespace, l.Namespace), strings.Compare(k.Name, l.Name))
}

// Policy is one resource as the user wrote it.
type Policy struct {
	PolicyKey
	APIVersion string `json:"apiVersion"`
	Source     []byte `json:"source"`   // one YAML document, word for word
	Created    uint64 `json:"created"`  // store index of its first write
	Modified   uint64 `json:"modified"` // store index of its last write
}

// Model is what policies compile to. Its one implementation is *policy.Model; mesh names it only to carry it.
type Model interface {
	// StoreIndex is the index of the store that the model was compiled from.
	StoreIndex() uint64
	// Entries are the services that policies declare, each host once.
	Entries() []*Entry
}
