//go:build !linux

package dnsserver

import (
	"net/netip"
	"syscall"
)

// controlUDP does nothing here: the system picks the address that answers leave from.
func controlUDP(netip.Addr) func(network, address string, c syscall.RawConn) error { return nil }

func replyFrom([]byte) []byte { return nil }
