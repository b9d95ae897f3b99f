// Command dns serves a made-up snapshot by package dnsserver, for run.sh to put a load on. With -names it prints the names
// it would serve instead, in the form of dnsperf or of unbound.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"syscall"

	"github.com/meshagent/meshagent/dnsserver"
	"github.com/meshagent/meshagent/mesh"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:8601", "where to listen")
	services := flag.Int("services", 1000, "number of services, each on one node of 100")
	names := flag.String("names", "", "print names for `dnsperf` or unbound, and exit")
	flag.Parse()
	if err := run(*addr, *services, *names); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(addr string, services int, names string) error {
	switch names {
	case "dnsperf":
		for i := range services {
			fmt.Printf("svc-%d.service.mesh A\n", i)
		}
		return nil
	case "unbound":
		for i := range services {
			fmt.Printf("local-data: \"svc-%d.service.mesh. 5 IN A %v\"\n", i, vip(i))
		}
		return nil
	case "":
	default:
		return fmt.Errorf("-names %q: use dnsperf or unbound", names)
	}
	at, err := netip.ParseAddrPort(addr)
	if err != nil {
		return err
	}
	snap, vips := snapshot(services)
	s, err := dnsserver.New(dnsserver.Config{Addr: at, Snapshot: func() *mesh.Snapshot { return snap }, VIPs: vips,
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return s.Run(ctx)
}

// table gives every service its VIP without a proxy behind it.
type table struct {
	of    map[mesh.ServiceName]netip.Addr
	names map[netip.Addr]mesh.ServiceName
}

func (t table) VIP(_ context.Context, s mesh.ServiceName) (netip.Addr, error) { return t.of[s], nil }

func (t table) ServiceOf(a netip.Addr) (mesh.ServiceName, bool) { s, ok := t.names[a]; return s, ok }

func vip(i int) netip.Addr { return netip.AddrFrom4([4]byte{127, 64, byte(i >> 8), byte(i)}) }

func snapshot(services int) (*mesh.Snapshot, table) {
	const nodes = 100
	t := table{map[mesh.ServiceName]netip.Addr{}, map[netip.Addr]mesh.ServiceName{}}
	recs := make([]*mesh.Record, nodes)
	for i := range recs {
		id := mesh.NodeIDFromBytes([16]byte{byte(i)})
		recs[i] = &mesh.Record{Node: mesh.Node{ID: id, Name: fmt.Sprintf("node-%d", i), Addr: netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), MeshPort: 15008}}
	}
	for i := range services {
		svc := mesh.MustServiceName(fmt.Sprintf("svc-%d", i))
		t.of[svc], t.names[vip(i)] = vip(i), svc
		r := recs[i%nodes]
		r.Instances = append(r.Instances, mesh.Instance{ID: svc.Name(), Node: r.Node.ID, Service: svc,
			Addr: netip.MustParseAddr("127.0.0.1"), Port: 8080, Weight: 1})
	}
	return mesh.NewSnapshot(1, mesh.TrustDomain{}, recs[0].Node.ID, recs, mesh.StoreState{}), t
}
