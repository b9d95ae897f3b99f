// Package fetch guards what the agent asks others for at addresses that policies name. Imported by agent/tokenkeys and agent/acme.
//
// Guarantees: a connection goes to no address of this host, its link or a private network unless the agent's configuration allows it; that is
// decided when the connection is opened, whatever the name meant before. No redirect is followed, no proxy of the environment is asked.
package fetch

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"syscall"
)

// CheckAllow reports what is wrong with an entry of what a Guard allows: a host, or a prefix of addresses.
func CheckAllow(s string) error {
	if _, err := netip.ParsePrefix(s); err != nil && (s == "" || strings.ContainsAny(s, "/:@* ")) {
		return fmt.Errorf("%q is neither a host, as keys.example.com, nor addresses, as 10.0.0.0/8", s)
	}
	return nil
}

// Guard says where connections may go. It is immutable.
type Guard struct {
	setting string // of the configuration, for errors
	nets    []netip.Prefix
	hosts   []string
}

// New returns a Guard of the entries of a setting, each of which CheckAllow has accepted.
func New(setting string, allow []string) *Guard {
	g := &Guard{setting: setting}
	for _, a := range allow {
		if p, err := netip.ParsePrefix(a); err == nil {
			g.nets = append(g.nets, p.Masked())
		} else {
			g.hosts = append(g.hosts, strings.ToLower(a))
		}
	}
	return g
}

// Names reports whether a host is allowed by its name.
func (g *Guard) Names(host string) bool { return slices.Contains(g.hosts, strings.ToLower(host)) }

// Client returns a client whose connections the Guard minds; roots vouch for servers, nil is the system's. The answers are the caller's to
// bound. Connections are not kept.
func (g *Guard) Client(roots *x509.CertPool) *http.Client {
	return &http.Client{
		Transport: &http.Transport{DialContext: g.dial, TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
			DisableKeepAlives: true, DisableCompression: true, ForceAttemptHTTP2: true, MaxResponseHeaderBytes: 64 << 10},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func (g *Guard) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	named := g.Names(host)
	d := net.Dialer{Control: func(_, address string, _ syscall.RawConn) error {
		a, err := netip.ParseAddrPort(address)
		if err == nil && !named && !g.MayReach(a.Addr()) {
			err = fmt.Errorf("%v is an address of this host, its link or a private network: %s has neither it nor its host", a.Addr(), g.setting)
		}
		return err
	}}
	return d.DialContext(ctx, network, addr)
}

// elsewhere are networks that are no part of the Internet beside those that netip knows: RFC 6890, and what leads to IPv4 in IPv6.
var elsewhere = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("192.0.0.0/24"), netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("240.0.0.0/4"), netip.MustParsePrefix("64:ff9b::/96"), netip.MustParsePrefix("64:ff9b:1::/48"), netip.MustParsePrefix("2002::/16"),
	netip.MustParsePrefix("2001::/32"), netip.MustParsePrefix("::/96"),
}

// MayReach reports whether an address is one of the Internet, or allowed.
func (g *Guard) MayReach(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	in := func(l []netip.Prefix) bool {
		return slices.ContainsFunc(l, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	return in(g.nets) || a.IsGlobalUnicast() && !a.IsPrivate() && !in(elsewhere)
}
