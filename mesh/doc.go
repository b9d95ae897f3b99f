// Package mesh is the vocabulary of meshagent: the words that every other package uses, as types whose only values are
// valid. It does no I/O and imports nothing but the standard library; everybody imports it.
//
// # The one flow
//
//	services.d/*.yaml | HTTP API | CLI
//	        -> agent/registry (this host's instances) -> agent/checks (health)
//	        -> gossip (membership + catalog of instances)        raftstore (policy, trust bundle, tokens)
//	                        \________________  agent/catalog  ________________/
//	                                              |
//	                                immutable *mesh.Snapshot (version n)
//	                             /                |                    \
//	                          proxy           dnsserver            agent/api/server
//
// # The words
//
// A Node is one host running the agent; its NodeID is derived from its public key, so nobody else can speak for it. A
// service is a name in a namespace (ServiceName). An Instance is one running copy of a service on one node. An Identity is
// a SPIFFE ID: of a workload, of a node or of a server. A Policy is one resource as the user wrote it. A Snapshot is an
// immutable picture of everything the data path needs.
//
// # Guarantees
//
// Values made by the Parse functions and UnmarshalText are valid and comparable, and are used as map keys. The zero value of
// a name type is "none" and its IsZero method says so. A Snapshot and everything it points to is immutable once built.
package mesh
