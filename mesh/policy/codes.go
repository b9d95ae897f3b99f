package policy

// Codes of problems. Those of Istio are its own; the others are ours, or the reasons of conditions of the Gateway API.
const (
	codeNotFound            = "IST0101"
	codeInvalid             = "IST0106"
	codeTwoVirtualServices  = "IST0109"
	codeTwoDestinationRules = "MESH0101"
)
