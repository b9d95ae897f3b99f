package policy

// Codes of findings. Those of Istio are its own; those without a number are reasons of conditions of the Gateway API; the others
// are ours. docs/analyze.md explains each.
const (
	codeNotFound            = "IST0101"
	codeInvalid             = "IST0106"
	codeTwoVirtualServices  = "IST0109"
	codeWhichPort           = "IST0112"
	codeHostNotOnGateway    = "IST0132"
	codeGatewaysClash       = "IST0145"
	codeSelectsNothing      = "IST0127"
	codeUnreachable         = "IST0130"
	codeDuplicateMatch      = "IST0131"
	codeEmptySubset         = "IST0173"
	codeRuleForNothing      = "IST0174"
	codeTwoDestinationRules = "MESH0101"
	codeHostNotFound        = "MESH0102"
	codeProtocol            = "MESH0103"
	codeNobody              = "MESH0104"
	codeTwoServiceEntries   = "MESH0110"
	codeWorkloadAlone       = "MESH0111"
	codeWorkloadUnfit       = "MESH0112"
	codeTwoSidecars         = "MESH0113"
	codeTLSWithin           = "MESH0120"
	codeHashOfNothing       = "MESH0121"
	codeNoSuchPort          = "MESH0122"
	codeNoTokens            = "MESH0123"
	codeNoChallenge         = "MESH0124"
	codeConflicted          = "Conflicted"
	codeRefNotPermitted     = "RefNotPermitted"
	codeBackendNotFound     = "BackendNotFound"
	codeNoParent            = "NoMatchingParent"
)

// Level says how bad a Finding is.
type Level string

// The levels.
const (
	Error   Level = "error"   // calls fail, or a policy is not what it says
	Warning Level = "warning" // without effect as it is; it may be meant so
	Info    Level = "info"    // superfluous
)

// code is what is the same for all findings of a code.
type code struct {
	name  string
	level Level
}

var codes = map[string]code{
	codeNotFound:            {"ReferencedResourceNotFound", Error},
	codeInvalid:             {"SchemaValidationError", Error},
	codeTwoVirtualServices:  {"ConflictingMeshGatewayVirtualServiceHosts", Error},
	codeWhichPort:           {"VirtualServiceDestinationPortSelectorRequired", Error},
	codeGatewaysClash:       {"ConflictingGateways", Error},
	codeHostNotOnGateway:    {"VirtualServiceHostNotFoundInGateway", Warning},
	codeSelectsNothing:      {"NoMatchingWorkloadsFound", Warning},
	codeUnreachable:         {"VirtualServiceUnreachableRule", Warning},
	codeDuplicateMatch:      {"VirtualServiceIneffectiveMatch", Info},
	codeEmptySubset:         {"DestinationRuleSubsetNotSelectPods", Warning},
	codeRuleForNothing:      {"UnknownDestinationRuleHost", Warning},
	codeTwoDestinationRules: {"ConflictingDestinationRules", Warning},
	codeHostNotFound:        {"VirtualServiceHostNotFound", Warning},
	codeProtocol:            {"ProtocolMismatch", Error},
	codeNobody:              {"NoSuchCaller", Warning},
	codeTwoServiceEntries:   {"ConflictingServiceEntries", Warning},
	codeWorkloadAlone:       {"WorkloadEntryNotSelected", Warning},
	codeWorkloadUnfit:       {"WorkloadEntryUnfit", Error},
	codeTwoSidecars:         {"ConflictingSidecars", Warning},
	codeTLSWithin:           {"TLSOfMeshService", Error},
	codeHashOfNothing:       {"HashKeyNotInConnections", Warning},
	codeNoSuchPort:          {"PortLevelSettingsOfNoPort", Warning},
	codeNoTokens:            {"ClaimsWithoutTokens", Warning},
	codeNoChallenge:         {"ChallengeReachesNobody", Warning},
	codeConflicted:          {"Conflicted", Warning},
	codeRefNotPermitted:     {"RefNotPermitted", Error},
	codeBackendNotFound:     {"BackendNotFound", Error},
	codeNoParent:            {"NoMatchingParent", Warning},
}
