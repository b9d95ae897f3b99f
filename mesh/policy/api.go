// Package policy turns resources that users wrote (Istio's networking and security kinds) into one Model of routing and
// authorization, and answers questions of the data path from it: pure functions, no I/O.
//
// Imported by proxy, agent, agent/api/server and cmd/meshagent. Guarantees: what is not supported is refused by name; a file
// with one invalid document is refused as a whole; a stored policy that does not compile denies what it governs.
package policy
