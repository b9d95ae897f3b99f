//go:build process && linux

package scenario

import (
	"errors"
	"net"
	"sync"
	"syscall"

	"github.com/miekg/dns"
)

// nameServer answers for the world outside of the mesh.
type nameServer struct {
	srv, tcp *dns.Server

	mu    sync.Mutex // guards names
	names map[string][]net.IP
}

// nameserver: starts it.
func (w *world) nameServer(args []string) (string, error) {
	if len(args) > 0 || w.dns != nil || w.c != nil {
		return "", errors.New("usage: nameserver, once, before mesh")
	}
	pc, ln, err := bothWays()
	if err != nil {
		return "", err
	}
	n := &nameServer{names: map[string][]net.IP{}}
	n.srv, n.tcp = &dns.Server{PacketConn: pc, Handler: n}, &dns.Server{Listener: ln, Handler: n}
	for _, s := range []*dns.Server{n.srv, n.tcp} {
		up := make(chan struct{})
		s.NotifyStartedFunc = func() { close(up) }
		go s.ActivateAndServe()
		<-up
		w.t.Cleanup(func() { s.Shutdown() })
	}
	w.dns = n
	w.setenv("NAMESERVER", pc.LocalAddr().String())
	return "", nil
}

// bothWays opens a port that is free for UDP and TCP.
func bothWays() (net.PacketConn, net.Listener, error) {
	for {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, nil, err
		}
		pc, err := net.ListenPacket("udp", ln.Addr().String())
		if err == nil {
			return pc, ln, nil
		}
		defer ln.Close() // not before another one is found
		if !errors.Is(err, syscall.EADDRINUSE) {
			return nil, nil, err
		}
	}
}

// ServeDNS answers a question for addresses of IPv4.
func (n *nameServer) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	r := new(dns.Msg)
	r.SetReply(q)
	n.mu.Lock()
	ips, ok := n.names[q.Question[0].Name]
	n.mu.Unlock()
	if !ok {
		r.Rcode = dns.RcodeNameError
	}
	for _, ip := range ips {
		if q.Question[0].Qtype == dns.TypeA {
			r.Answer = append(r.Answer, &dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 5}, A: ip})
		}
	}
	w.WriteMsg(r)
}

// names HOST [ADDRESS...]: what a name has from now on; without an address it is none.
func (w *world) names(args []string) (string, error) {
	if len(args) == 0 || w.dns == nil {
		return "", errors.New("usage: names HOST [ADDRESS...], behind nameserver")
	}
	w.dns.mu.Lock()
	defer w.dns.mu.Unlock()
	delete(w.dns.names, args[0]+".")
	for _, a := range args[1:] {
		ip := net.ParseIP(a).To4()
		if ip == nil {
			return "", errors.New(a + " is no address of IPv4")
		}
		w.dns.names[args[0]+"."] = append(w.dns.names[args[0]+"."], ip)
	}
	return "", nil
}

// nameserverdown: ends it.
func (w *world) nameServerDown([]string) (string, error) {
	if w.dns == nil {
		return "", errors.New("there is no name server")
	}
	return "", errors.Join(w.dns.srv.Shutdown(), w.dns.tcp.Shutdown())
}
