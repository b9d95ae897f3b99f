package gossip

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-msgpack/v2/codec"

	"github.com/meshagent/meshagent/gossip/gossiptest"
	"github.com/meshagent/meshagent/mesh"
)

// fuzzKey is always the same key for a number, so that what was signed for a corpus stays right.
func fuzzKey(n byte) *ecdsa.PrivateKey {
	k, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), bytes.Repeat([]byte{n}, 32))
	if err != nil {
		panic(err)
	}
	return k
}

func idOf(k *ecdsa.PrivateKey) mesh.NodeID {
	id, _ := mesh.NodeIDOf(k.Public())
	return id
}

// The member under test, and another one that it knows; the key of gossip.
var (
	fuzzSelf, fuzzPeer = fuzzKey(1), fuzzKey(2)
	selfAt, peerAt     = netip.MustParseAddrPort("10.0.0.1:7946"), netip.MustParseAddrPort("10.0.0.2:7946")
	fuzzRing           = bytes.Repeat([]byte{7}, 32)
)

const fuzzLabel = "test"

// seal encrypts as a member does.
func seal(plain, auth []byte) []byte {
	block, _ := aes.NewCipher(fuzzRing)
	aead, _ := cipher.NewGCM(block)
	nonce := make([]byte, nonceLen)
	return aead.Seal(append([]byte{cipherVersion}, nonce...), nonce, plain, auth)
}

func labelled(b []byte) []byte {
	return append(append([]byte{msgLabel, byte(len(fuzzLabel))}, fuzzLabel...), b...)
}

func packetOf(plain []byte) []byte { return labelled(seal(plain, []byte(fuzzLabel))) }

func streamOf(plain []byte) []byte {
	head := binary.BigEndian.AppendUint32([]byte{msgEncrypted}, uint32(1+nonceLen+len(plain)+tagLen))
	return labelled(append(head, seal(plain, append(bytes.Clone(head), fuzzLabel...))...))
}

// message is one of memberlist's, with fields as it names them.
func message(kind byte, fields ...map[string]any) []byte {
	b := bytes.NewBuffer([]byte{kind})
	for _, f := range fields {
		if err := codec.NewEncoder(b, &codec.MsgpackHandle{}).Encode(f); err != nil {
			panic(err)
		}
	}
	return b.Bytes()
}

func compoundOf(parts ...[]byte) []byte {
	b := []byte{msgCompound, byte(len(parts))}
	for _, p := range parts {
		b = binary.BigEndian.AppendUint16(b, uint16(len(p)))
	}
	return append(b, slices.Concat(parts...)...)
}

func peerAlive(inc int) map[string]any {
	meta, _ := encodeMeta(fuzzPeer, idOf(fuzzPeer).String(), peerAt)
	return map[string]any{"Incarnation": inc, "Node": idOf(fuzzPeer).String(), "Addr": peerAt.Addr().AsSlice(), "Port": 7946, "Meta": meta,
		"Vsn": []byte{1, 5, 2, 0, 0, 0}}
}

// fuzzMessages are one of each that a member sends, and some that none does.
func fuzzMessages(t testing.TB) [][]byte {
	self, peer := idOf(fuzzSelf).String(), idOf(fuzzPeer).String()
	rec := &mesh.Record{Node: mesh.Node{ID: idOf(fuzzPeer), Name: "peer", Addr: peerAt.Addr(), MeshPort: 15008, Incarnation: 1, Version: 9, Keyring: 3},
		Instances: instances(2)}
	enc, err := encode(rec, fuzzPeer)
	if err != nil {
		t.Fatal(err)
	}
	notice := digest{from: idOf(fuzzPeer), addr: netip.MustParseAddrPort("10.0.0.2:15008"), have: map[mesh.NodeID]stamp{idOf(fuzzPeer): {1, 10}}}
	stranger := peerAlive(1)
	stranger["Node"] = idOf(fuzzKey(3)).String()
	older := peerAlive(1)
	older["Vsn"] = []byte{1}
	ping := message(msgPing, map[string]any{"SeqNo": 1, "Node": self, "SourceAddr": peerAt.Addr().AsSlice(), "SourcePort": 7946, "SourceNode": peer})
	plain := [][]byte{
		ping,
		message(msgPing, map[string]any{"SeqNo": 1, "Node": peer}),
		message(msgIndirectPing, map[string]any{"SeqNo": 2, "Node": peer, "Target": peerAt.Addr().AsSlice(), "Port": 7946, "Nack": true}),
		message(msgIndirectPing, map[string]any{"SeqNo": 2, "Node": "", "Target": []byte{1}, "Port": 0, "Nack": true, "SourceAddr": []byte{1, 2}, "SourcePort": 1}),
		message(msgAck, map[string]any{"SeqNo": 1, "Payload": []byte("x")}),
		message(msgNack, map[string]any{"SeqNo": 1}),
		message(msgSuspect, map[string]any{"Incarnation": 1, "Node": peer, "From": self}),
		message(msgSuspect, map[string]any{"Incarnation": 4294967295, "Node": self, "From": peer}),
		message(msgDead, map[string]any{"Incarnation": 1, "Node": peer, "From": peer}),
		message(msgDead, map[string]any{"Incarnation": 4294967295, "Node": self, "From": self}),
		message(msgAlive, peerAlive(5)),
		message(msgAlive, stranger),
		message(msgAlive, older),
		append([]byte{msgUser}, enc...),
		append([]byte{msgUser}, notice.encode(noticeV1)...),
		append([]byte{msgUser, recordV1}, enc[5:]...),
		{msgUser},
		compoundOf(ping, append([]byte{msgUser}, enc...), message(msgDead, map[string]any{"Incarnation": 1, "Node": peer, "From": peer})),
		compoundOf(compoundOf(ping), nil),
		binary.BigEndian.AppendUint32([]byte{msgCRC}, crc32.ChecksumIEEE(ping)),
		{msgPing, 0x81, 0xa1, 'x', 0xc6, 0xff, 0xff, 0xff, 0xff}, // a field of 4 GiB
		append([]byte{msgPing, 0x81, 0xa1, 'x'}, bytes.Repeat([]byte{0x91}, 2000)...),
		{9, 0x82, 0xa4, 'A', 'l', 'g', 'o', 0, 0xa3, 'B', 'u', 'f', 0xc4, 2, 0, 0},
		{},
	}
	plain[19] = append(plain[19], ping...)
	return plain
}

// target is one member in virtual time, and what may be sent to it.
type target struct {
	*Gossip
	t       *testing.T
	network *gossiptest.Network
	peer    *gossiptest.Transport
	stop    func()
}

type noFetch struct{}

func (noFetch) FetchRecords(context.Context, netip.AddrPort, []mesh.NodeID) ([][]byte, error) {
	return nil, errors.New("unreachable")
}

func newTarget(t *testing.T) *target {
	network := gossiptest.New(1)
	g, err := New(Config{Self: mesh.Node{ID: idOf(fuzzSelf), Name: "self", Addr: selfAt.Addr(), MeshPort: 15008}, Key: fuzzSelf, Bind: selfAt, Label: fuzzLabel,
		Keyring: [][]byte{fuzzRing}, Seeds: func() []string { return nil }, Fetcher: noFetch{}, Transport: network.Transport(selfAt.String()), Log: discard})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	d := &target{Gossip: g, t: t, network: network, peer: network.Transport(peerAt.String())}
	go func() { // the peer closes what the member opens to it
		for {
			select {
			case c := <-d.peer.StreamCh():
				c.Close()
			case <-ctx.Done():
				return
			}
		}
	}()
	d.stop = func() {
		d.peer.Shutdown()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	synctest.Wait()
	d.send(packetOf(message(msgAlive, peerAlive(1))))
	return d
}

// send sends a packet, and returns when the member has done with it.
func (d *target) send(b []byte) {
	if _, err := d.peer.WriteTo(b, selfAt.String()); err != nil {
		d.t.Fatal(err)
	}
	time.Sleep(2 * time.Millisecond) // of virtual time
	synctest.Wait()
}

// stream opens a stream, writes and reads until the member closes.
func (d *target) stream(b []byte) {
	c, err := d.peer.DialTimeout(selfAt.String(), time.Second)
	if err != nil {
		d.t.Fatal(err)
	}
	go func() {
		c.Write(b)
		time.Sleep(time.Second)
		c.Close()
	}()
	io.Copy(io.Discard, c)
	synctest.Wait()
}

// answers reports whether the member answers a ping.
func (d *target) answers() bool {
	for len(d.peer.PacketCh()) > 0 {
		<-d.peer.PacketCh()
	}
	const seq = 77_777
	d.send(packetOf(message(msgPing, map[string]any{"SeqNo": seq, "Node": idOf(fuzzSelf).String()})))
	want := message(msgAck, map[string]any{"SeqNo": seq})[9:] // the number, as it is encoded
	guard := &guard{g: d.Gossip}
	for deadline := time.After(time.Second); ; {
		select {
		case p := <-d.peer.PacketCh():
			plain, err := guard.unseal(p.Buf[2+len(fuzzLabel):], []byte(fuzzLabel))
			if err != nil {
				d.t.Fatalf("the member sent what nobody can read: %v", err)
			}
			if bytes.Contains(plain, want) {
				return true
			}
		case <-deadline:
			return false
		}
	}
}

// check fails when what was received left more than it may: nodes that nobody signed, goroutines, memory.
func (d *target) check(goroutines int, heap uint64, size int) {
	d.t.Helper()
	d.mu.Lock()
	for id, k := range d.nodes {
		if id != idOf(fuzzSelf) && id != idOf(fuzzPeer) {
			d.t.Errorf("node %s is known, which has signed nothing", id)
		}
		if k.rec == nil {
			continue
		}
		if rec, err := decode(k.enc, nil); err != nil || rec.Node.ID != id || rec.Node.Version != k.rec.Node.Version {
			d.t.Errorf("the record of node %s is not what it has signed: %v", id, err)
		}
	}
	d.mu.Unlock()
	for _, m := range d.list.Members() {
		if m.Name != idOf(fuzzSelf).String() && m.Name != idOf(fuzzPeer).String() {
			d.t.Errorf("%s is a member, which has proved nothing", m.Name)
		}
	}
	if !d.answers() {
		d.t.Error("the member does not answer any more")
	}
	if used := allocated() - heap; used > 8<<20+64*uint64(size) {
		d.t.Errorf("%d bytes took %d of memory", size, used)
	}
	time.Sleep(time.Minute) // of virtual time: probes, gossip, push/pull go on
	synctest.Wait()
	if n := runtime.NumGoroutine(); n > goroutines+4 {
		d.t.Errorf("%d goroutines, %d before", n, goroutines)
	}
	if !d.answers() {
		d.t.Error("the member does not answer after a minute")
	}
}

func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

// FuzzPacket sends a member two packets that hold anything: one as it is, of a stranger, and one encrypted with the mesh's key.
// The member goes on, and nothing that was not signed gets into what it knows.
func FuzzPacket(f *testing.F) {
	for _, m := range fuzzMessages(f) {
		f.Add(packetOf(m), m)
	}
	vacant := seal(bytes.Repeat([]byte{255}, 16), []byte(fuzzLabel)) // a padding longer than the text
	vacant[0] = 0
	f.Add(labelled(vacant), []byte{msgUser, digestV1})
	f.Fuzz(func(t *testing.T, raw, inner []byte) {
		if len(raw) > 65_507 || len(inner) > 65_000 {
			t.Skip("more than UDP carries")
		}
		synctest.Test(t, func(t *testing.T) {
			d := newTarget(t)
			goroutines, heap := runtime.NumGoroutine(), allocated()
			d.send(raw)
			d.send(packetOf(inner))
			d.check(goroutines, heap, len(raw)+len(inner))
			d.stop()
			time.Sleep(time.Minute) // of virtual time: probes under way end
		})
	})
}

// fuzzStates are what two members send each other in streams, and what none does.
func fuzzStates() [][]byte {
	node := func(state int) map[string]any {
		n := peerAlive(3)
		n["Name"], n["State"] = n["Node"], state
		delete(n, "Node")
		return n
	}
	know := digest{from: idOf(fuzzPeer), addr: netip.MustParseAddrPort("10.0.0.2:15008"),
		have: map[mesh.NodeID]stamp{idOf(fuzzPeer): {1, 10}, idOf(fuzzKey(3)): {1, 1}}}
	state := know.encode(digestV1)
	pushPull := func(nodes, length int, join bool, more ...map[string]any) []byte {
		head := map[string]any{"Nodes": nodes, "UserStateLen": length, "Join": join}
		return append(message(msgPushPull, append([]map[string]any{head}, more...)...), state...)
	}
	return [][]byte{
		pushPull(1, len(state), true, node(0)),
		pushPull(3, len(state), false, node(1), node(2), node(3)),
		pushPull(1, len(state), false, map[string]any{"Name": "x", "State": 9, "Vsn": []byte{1}}),
		pushPull(1<<20, len(state), false, node(0)),
		pushPull(-1, -1, false),
		pushPull(0, 20<<20, false),
		message(msgPing, map[string]any{"SeqNo": 1, "Node": idOf(fuzzSelf).String()}),
		append(message(msgUser, map[string]any{"UserMsgLen": 20 << 20}), 1),
		message(msgError, map[string]any{"Error": strings.Repeat("x", 100)}),
		append([]byte{msgPushPull, 0x81, 0xa1, 'x'}, bytes.Repeat([]byte{0x91}, 100_000)...),
		{msgPushPull},
		{},
	}
}

// FuzzStream is FuzzPacket for streams: pings and push/pulls.
func FuzzStream(f *testing.F) {
	for _, m := range fuzzStates() {
		f.Add(streamOf(m), m)
	}
	f.Add([]byte{msgLabel, 4, 't', 'e', 's', 't', msgEncrypted, 255, 255, 255, 255, 0}, []byte{9, 0x80})
	f.Fuzz(func(t *testing.T, raw, inner []byte) {
		if len(raw)+len(inner) > 1<<20 {
			t.Skip("costs time alone")
		}
		synctest.Test(t, func(t *testing.T) {
			d := newTarget(t)
			goroutines, heap := runtime.NumGoroutine(), allocated()
			d.stream(raw)
			d.stream(streamOf(inner))
			d.check(goroutines, heap, len(raw)+len(inner))
			d.stop()
			time.Sleep(time.Minute) // of virtual time: probes under way end
		})
	})
}
