package gossip

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/meshagent/meshagent/internal/telemetry"
	"github.com/meshagent/meshagent/mesh"
)

// guarded runs f with a member in virtual time whose counts can be read.
func guarded(t *testing.T, f func(d *target, dropped func(reason string) string)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		d := newTarget(t)
		m := telemetry.NewMetrics()
		d.bad = m.Counter("bad", "", "reason")
		f(d, func(reason string) string {
			w := httptest.NewRecorder()
			m.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
			_, n, _ := strings.Cut(w.Body.String(), fmt.Sprintf("bad{reason=%q} ", reason))
			n, _, _ = strings.Cut(n, "\n")
			return n
		})
		d.stop()
		time.Sleep(time.Minute) // of virtual time: probes under way end
	})
}

// TestGuardedPackets: what would end memberlist, or what no agent sends, does not get to it, whoever encrypted it.
func TestGuardedPackets(t *testing.T) {
	ping := message(msgPing, map[string]any{"SeqNo": 1})
	padded := seal(bytes.Repeat([]byte{255}, 16), []byte(fuzzLabel))
	padded[0] = 0 // the version is not authenticated
	other := seal(ping, []byte("other"))
	flipped := packetOf(ping)
	flipped[len(flipped)-1] ^= 1
	for name, b := range map[string][]byte{
		"a padding longer than its text":     labelled(padded),
		"nothing":                            {},
		"no label":                           seal(ping, nil),
		"a label that is cut off":            {msgLabel, 200, 't'},
		"another mesh":                       append(append([]byte{msgLabel, 5}, "other"...), other...),
		"plain text":                         labelled(ping),
		"too short":                          labelled([]byte{cipherVersion, 1, 2}),
		"a bit that was flipped":             flipped,
		"an empty message":                   packetOf(nil),
		"a compressed one":                   packetOf([]byte{9, 0x80}),
		"an unknown one":                     packetOf([]byte{200}),
		"one of streams":                     packetOf([]byte{msgPushPull}),
		"a checksum of nothing":              packetOf([]byte{msgCRC, 0, 0, 0, 0}),
		"a compound in a compound":           packetOf(compoundOf(compoundOf(ping))),
		"a compound without a count":         packetOf([]byte{msgCompound}),
		"a compound without lengths":         packetOf([]byte{msgCompound, 2, 0}),
		"a compound that is cut off":         packetOf([]byte{msgCompound, 1, 0, 9, msgPing}),
		"a compound with an empty message":   packetOf(compoundOf(ping, nil)),
		"a compound with a compressed one":   packetOf(compoundOf(ping, []byte{9})),
		"a checksum of a checksum of a ping": packetOf(append([]byte{msgCRC, 0, 0, 0, 0, msgCRC, 0, 0, 0, 0}, ping...)),
	} {
		t.Run(name, func(t *testing.T) {
			guarded(t, func(d *target, dropped func(string) string) {
				d.send(b)
				if n := dropped("packet"); n != "1" {
					t.Errorf("%q packets are counted as dropped", n)
				}
				if !d.answers() {
					t.Error("the member does not answer any more")
				}
			})
		})
	}
}

// TestGuardedStreams is TestGuardedPackets for streams.
func TestGuardedStreams(t *testing.T) {
	states := fuzzStates()
	long := labelled(binary.BigEndian.AppendUint32([]byte{msgEncrypted}, maxState+1))
	for name, b := range map[string][]byte{
		"an empty message":           streamOf(nil),
		"a compressed one":           streamOf([]byte{9, 0x80}),
		"a user's message":           streamOf(states[7]),
		"a million nodes":            streamOf(states[3]),
		"less than no nodes":         streamOf(states[4]),
		"20 MiB of state":            streamOf(states[5]),
		"no push/pull":               streamOf([]byte{msgPushPull, 0xc1}),
		"what nests 100,000 times":   streamOf(states[9]),
		"an answer that nobody asks": streamOf([]byte{msgAck, 0x80}),
		"more than 20 MiB":           long,
		"plain text":                 labelled(append([]byte{msgPing}, "xxxx"...)),
		"another mesh":               append([]byte{msgLabel, 5}, "other xxxxx"...),
		"no label":                   []byte{msgEncrypted, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			guarded(t, func(d *target, dropped func(string) string) {
				before := allocated()
				d.stream(b)
				if n := dropped("stream"); n != "1" {
					t.Errorf("%q streams are counted as dropped", n)
				}
				if used := allocated() - before; used > 4<<20 {
					t.Errorf("%d bytes took %d of memory", len(b), used)
				}
				if !d.answers() {
					t.Error("the member does not answer any more")
				}
			})
		})
	}
}

// TestGuardedAnswers: a member that was asked for its state, and answers with what ends memberlist, ends nothing.
func TestGuardedAnswers(t *testing.T) {
	guarded(t, func(d *target, dropped func(string) string) {
		evil := d.network.Transport("10.0.0.3:7946")
		defer evil.Shutdown()
		go func() {
			c := <-evil.StreamCh()
			defer c.Close()
			go io.Copy(io.Discard, c)
			c.Write(streamOf(nil)[2+len(fuzzLabel):]) // without the label, as answers are
		}()
		if _, err := d.list.Join([]string{"10.0.0.3:7946"}); err == nil {
			t.Error("it was joined")
		}
		if n := dropped("stream"); n != "1" {
			t.Errorf("%q streams are counted as dropped", n)
		}
		if !d.answers() {
			t.Error("the member does not answer any more")
		}
	})
}

// TestStreamsAreBounded: of one address only few streams are open at a time, and when they end others may come.
func TestStreamsAreBounded(t *testing.T) {
	guarded(t, func(d *target, dropped func(string) string) {
		var open []net.Conn
		for range maxStreamsOf {
			c, err := d.peer.DialTimeout(selfAt.String(), time.Second)
			if err != nil {
				t.Fatal(err)
			}
			open = append(open, c)
		}
		synctest.Wait()
		if n := dropped("streams"); n != "" {
			t.Fatalf("%s were refused of as many as may be", n)
		}
		d.stream(streamOf(message(msgPing, map[string]any{"SeqNo": 1})))
		if n := dropped("streams"); n != "1" {
			t.Errorf("%q were refused, want 1", n)
		}
		for _, c := range open {
			c.Close()
		}
		synctest.Wait()
		d.stream(streamOf(message(msgPing, map[string]any{"SeqNo": 1})))
		if n := dropped("streams"); n != "1" {
			t.Errorf("%q were refused after the others had ended, want 1", n)
		}
	})
	g := &guard{open: map[string]int{}}
	for i := range maxStreams + 10 {
		if ok := g.enter(fmt.Sprint("10.1.0.", i)); ok != (i < maxStreams) {
			t.Fatalf("stream %d of all: let in %v", i, ok)
		}
	}
	for i := range maxStreams {
		g.exit(fmt.Sprint("10.1.0.", i))
	}
	if g.all != 0 || len(g.open) != 0 {
		t.Errorf("%d streams and %d addresses are left", g.all, len(g.open))
	}
}

// TestMembersProveTheirKey: a member that shows no proof, or that of another name or address, is none.
func TestMembersProveTheirKey(t *testing.T) {
	third := idOf(fuzzKey(3)).String()
	for name, change := range map[string]func(m map[string]any){
		"no proof":                            func(m map[string]any) { m["Node"], m["Meta"] = third, nil },
		"an empty proof":                      func(m map[string]any) { m["Node"], m["Meta"] = third, []byte{} },
		"another's proof":                     func(m map[string]any) { m["Node"] = third },
		"no name":                             func(m map[string]any) { m["Node"], m["Meta"] = "", nil },
		"a member elsewhere, without a proof": func(m map[string]any) { m["Addr"], m["Meta"] = []byte{10, 0, 0, 9}, nil },
		"a member elsewhere":                  func(m map[string]any) { m["Addr"] = []byte{10, 0, 0, 9} },
	} {
		t.Run(name, func(t *testing.T) {
			guarded(t, func(d *target, dropped func(string) string) {
				m := peerAlive(9)
				change(m)
				d.send(packetOf(message(msgAlive, m)))
				if n := dropped("member"); n != "1" {
					t.Errorf("%q members are counted as dropped", n)
				}
				if all := d.list.Members(); len(all) != 2 {
					t.Errorf("members are %v, want the host and its peer", all)
				}
			})
		})
	}
}

// TestNodesAreBounded: who has the key of gossip makes up keys of nodes, as many as he likes; a host keeps only so many.
func TestNodesAreBounded(t *testing.T) {
	guarded(t, func(d *target, dropped func(string) string) {
		d.mu.Lock()
		d.maxNodes = 3
		d.mu.Unlock()
		for n := byte(3); n < 10; n++ {
			key := fuzzKey(n)
			rec := &mesh.Record{Node: mesh.Node{ID: idOf(key), Name: fmt.Sprint("n", n), Addr: peerAt.Addr(), MeshPort: 1, Incarnation: 1, Version: 1}}
			enc, err := encode(rec, key)
			if err != nil {
				t.Fatal(err)
			}
			d.send(packetOf(append([]byte{msgUser}, enc...)))
			meta, _ := encodeMeta(key, idOf(key).String(), peerAt)
			alive := peerAlive(1)
			alive["Node"], alive["Meta"] = idOf(key).String(), meta
			d.send(packetOf(message(msgAlive, alive)))
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		if len(d.nodes) != 3 {
			t.Errorf("%d nodes are known, want 3", len(d.nodes))
		}
		if n := dropped("nodes"); n != "12" {
			t.Errorf("%q are counted, want 12", n)
		}
	})
}

var _ memberlist.Transport = (*guard)(nil)
