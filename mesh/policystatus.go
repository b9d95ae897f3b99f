package mesh

// PolicyStatus is what became of a resource: for routes of the Gateway API in the form of their status, one entry for each parent, for
// other kinds in that of Istio's. It is worked out when it is asked for and stored nowhere, and so there is no time of transition in it.
type PolicyStatus struct {
	Conditions         []Condition      `json:"conditions,omitempty"`
	Parents            []ParentStatus   `json:"parents,omitempty"`
	Listeners          []ListenerStatus `json:"listeners,omitempty"`          // of a Gateway of the Gateway API
	ValidationMessages []PolicyMessage  `json:"validationMessages,omitempty"` // what analyze finds
}

// Condition is one thing that is so, or not.
type Condition struct {
	Type               string `json:"type"`   // Reconciled; of a Certificate: Ready; of a parent: Accepted, ResolvedRefs, Programmed
	Status             string `json:"status"` // True or False
	Reason             string `json:"reason"` // one word
	Message            string `json:"message,omitempty"`
	ObservedGeneration uint64 `json:"observedGeneration"` // the store index of the resource's last write
}

// ParentStatus is what became of a route at one of its parents.
type ParentStatus struct {
	ParentRef      ParentRef   `json:"parentRef"`
	ControllerName string      `json:"controllerName"`
	Conditions     []Condition `json:"conditions"`
}

// ParentRef names a parent as the route does.
type ParentRef struct {
	Group       string `json:"group"`
	Kind        string `json:"kind"`
	Namespace   string `json:"namespace,omitempty"`
	Name        string `json:"name"`
	SectionName string `json:"sectionName,omitempty"`
	Port        uint16 `json:"port,omitempty"`
}

// ListenerStatus is what became of a listener of a Gateway.
type ListenerStatus struct {
	Name           string      `json:"name"`
	AttachedRoutes int         `json:"attachedRoutes"`
	Conditions     []Condition `json:"conditions"`
}

// PolicyMessage is a finding as Istio's status has it, and what it is about.
type PolicyMessage struct {
	Type    MessageType `json:"type"`
	Level   string      `json:"level"` // ERROR, WARNING, INFO
	Path    string      `json:"path,omitempty"`
	Message string      `json:"message"`
}

// MessageType names a kind of finding.
type MessageType struct {
	Code string `json:"code"` // see docs/analyze.md
	Name string `json:"name"`
}

// Summary is the status in a word or two: "ok", or the worst that is to be said.
func (s *PolicyStatus) Summary() string {
	worst := "ok"
	look := func(cs []Condition) {
		for _, c := range cs {
			if c.Status != "True" && worst == "ok" {
				worst = c.Reason
			}
		}
	}
	for _, m := range s.ValidationMessages {
		if m.Level == "ERROR" {
			return "error " + m.Type.Code
		}
	}
	look(s.Conditions)
	for _, p := range s.Parents {
		look(p.Conditions)
	}
	for _, m := range s.ValidationMessages {
		if m.Level == "WARNING" && worst == "ok" {
			worst = "warning " + m.Type.Code
		}
	}
	return worst
}
