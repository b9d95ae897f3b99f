package gossip

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net/netip"
	"slices"

	"github.com/meshagent/meshagent/mesh"
)

// errBad is wrapped by every reason for which something received is dropped.
var errBad = errors.New("bad gossip")

// The first byte of everything that is sent. Numbers are never used again for something else.
const (
	recordV1 = 1 // a signed record
	noticeV1 = 2 // says that a record too large for a packet has changed
	digestV1 = 3 // what a node knows, on push/pull
	metaV1   = 4 // a member's key and proof
)

// sigLen is the length of a signature: r and s of ECDSA P-256, 32 bytes each. keyLen is that of a compressed public key.
const (
	sigLen = 64
	keyLen = 33
)

// maxInstances bounds the instances of one node.
const maxInstances = 4096

func sign(key crypto.Signer, context string, b []byte) ([]byte, error) {
	k, ok := key.(*ecdsa.PrivateKey)
	if !ok || k.Curve != elliptic.P256() {
		return nil, fmt.Errorf("node key is a %T: ECDSA on P-256 is needed", key)
	}
	h := sha256.Sum256(append([]byte(context), b...))
	r, s, err := ecdsa.Sign(rand.Reader, k, h[:])
	if err != nil {
		return nil, err
	}
	out := make([]byte, sigLen)
	r.FillBytes(out[:32])
	s.FillBytes(out[32:])
	return out, nil
}

func verify(pub *ecdsa.PublicKey, context string, b, sig []byte) bool {
	h := sha256.Sum256(append([]byte(context), b...))
	return len(sig) == sigLen && ecdsa.Verify(pub, h[:], new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:]))
}

func compress(pub crypto.PublicKey) ([]byte, error) {
	p, ok := pub.(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("node key is a %T", pub)
	}
	b, err := p.Bytes()
	if err != nil || len(b) != 65 {
		return nil, fmt.Errorf("node key is not on P-256 (%w)", err)
	}
	return append([]byte{2 + b[64]&1}, b[1:33]...), nil
}

func decompress(b []byte) (*ecdsa.PublicKey, mesh.NodeID, error) {
	x, y := elliptic.UnmarshalCompressed(elliptic.P256(), b)
	if x == nil {
		return nil, mesh.NodeID{}, fmt.Errorf("%w: no public key", errBad)
	}
	pub, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append(append([]byte{4}, x.FillBytes(make([]byte, 32))...), y.FillBytes(make([]byte, 32))...))
	if err != nil {
		return nil, mesh.NodeID{}, fmt.Errorf("%w: %w", errBad, err)
	}
	id, err := mesh.NodeIDOf(pub)
	return pub, id, err
}

// encode returns the signed record: version, key, fields, extras, signature of all before it. The node's ID is not in it: it follows
// from the key, so that nobody else can write the record.
func encode(r *mesh.Record, key crypto.Signer) ([]byte, error) {
	pub, err := compress(key.Public())
	if err != nil {
		return nil, err
	}
	w := writer{append([]byte{recordV1}, pub...)}
	n := &r.Node
	w.uint(n.Incarnation)
	w.uint(n.Version)
	w.str(n.Name)
	w.addr(n.Addr)
	w.uint(uint64(n.MeshPort))
	w.str(n.Locality.String())
	w.labels(n.Labels)
	w.b = append(w.b, flags(n))
	w.str(n.Agent)
	w.uint(n.PolicyIndex)
	w.uint(uint64(len(r.Instances)))
	for i := range r.Instances {
		in := &r.Instances[i]
		w.str(in.ID)
		w.str(in.Service.String())
		w.str(in.Account)
		w.addr(in.Addr)
		w.uint(uint64(in.Port))
		w.uint(uint64(in.ServicePort))
		w.b = append(w.b, byte(in.Protocol), byte(in.Health))
		w.uint(uint64(in.Weight))
		w.labels(in.Labels)
	}
	w.extra(extraKeyring, n.Keyring)
	w.extra(extraBundle, n.Bundle)
	sig, err := sign(key, "meshagent record", w.b)
	if err != nil {
		return nil, err
	}
	return append(w.b, sig...), nil
}

// The extras of a record come behind its instances: number, length, value. A reader passes over numbers that it does not know,
// so that a newer agent may say more. What was never changed, and so is 1, is left out: agents that know no extras read such a record too.
const (
	extraKeyring = 1
	extraBundle  = 2
)

func (w *writer) extra(number, v uint64) {
	if v > 1 {
		w.uint(number)
		w.str(string(binary.AppendUvarint(nil, v)))
	}
}

func (r *reader) extras(n *mesh.Node) {
	n.Keyring, n.Bundle = 1, 1 // who says nothing has the first of each
	for len(r.b) > 0 && !r.bad {
		number, v := r.uint(), reader{b: r.take(r.uint())}
		switch number {
		case extraKeyring:
			n.Keyring = v.uint()
		case extraBundle:
			n.Bundle = v.uint()
		}
		r.bad = r.bad || v.bad
	}
}

// The flags of a record.
const (
	flagServer = 1 << 0
	flagLeft   = 1 << 1 // the owner says good-bye
)

func flags(n *mesh.Node) (f byte) {
	if n.Server {
		f |= flagServer
	}
	if n.Status == mesh.Left {
		f |= flagLeft
	}
	return f
}

// peek reads whose record it is, as a compressed key, and its stamp, without a look at the signature: what it says is only good
// for leaving aside what would change nothing.
func peek(b []byte) (key [keyLen]byte, at stamp, ok bool) {
	if len(b) < 1+keyLen+sigLen || b[0] != recordV1 {
		return key, at, false
	}
	r := reader{b: b[1+keyLen : len(b)-sigLen]}
	at = stamp{r.uint(), r.uint()}
	return [keyLen]byte(b[1:]), at, !r.bad
}

// decode reads a record and checks signature and every field. Its errors wrap errBad. What records have in common is taken
// from p, which may be nil.
func decode(b []byte, p *pool) (*mesh.Record, error) {
	if len(b) < 1+keyLen+sigLen || b[0] != recordV1 {
		return nil, fmt.Errorf("%w: no record of a version this agent knows", errBad)
	}
	pub, id, err := decompress(b[1 : 1+keyLen])
	if err != nil {
		return nil, err
	}
	body, sig := b[:len(b)-sigLen], b[len(b)-sigLen:]
	if !verify(pub, "meshagent record", body, sig) {
		return nil, fmt.Errorf("%w: record of %s: its signature is wrong", errBad, id)
	}
	if p == nil {
		p = new(pool)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.bound()
	r := reader{b: body[1+keyLen:]}
	rec := &mesh.Record{Node: mesh.Node{ID: id}}
	n := &rec.Node
	n.Incarnation, n.Version, n.Name, n.Addr, n.MeshPort = r.uint(), r.uint(), r.str(), r.addr(), r.port()
	if n.Locality, err = mesh.ParseLocality(r.str()); err != nil {
		return nil, fmt.Errorf("%w: %w", errBad, err)
	}
	n.Labels = p.labelsLocked(&r)
	f := r.byte()
	n.Server = f&flagServer != 0
	if f&flagLeft != 0 {
		n.Status = mesh.Left
	}
	n.Agent, n.PolicyIndex = p.textLocked(&r), r.uint()
	count := r.uint()
	if count > maxInstances {
		return nil, fmt.Errorf("%w: record of %s: %d instances", errBad, id, count)
	}
	for range count {
		if r.bad {
			break
		}
		in := mesh.Instance{Node: id, ID: r.str()}
		if in.Service, err = p.serviceLocked(&r); err != nil {
			return nil, fmt.Errorf("%w: %w", errBad, err)
		}
		in.Account, in.Addr, in.Port, in.ServicePort = p.textLocked(&r), r.addr(), r.port(), r.port()
		in.Protocol, in.Health, in.Weight, in.Labels = mesh.Protocol(r.byte()), mesh.Health(r.byte()), r.port(), p.labelsLocked(&r)
		if err := in.Check(); !r.bad && err != nil {
			return nil, fmt.Errorf("%w: record of %s: %w", errBad, id, err)
		}
		if k := len(rec.Instances); k > 0 && rec.Instances[k-1].ID >= in.ID {
			return nil, fmt.Errorf("%w: record of %s: instances out of order", errBad, id)
		}
		rec.Instances = append(rec.Instances, in)
	}
	r.extras(n)
	if r.bad {
		return nil, fmt.Errorf("%w: record of %s ends in the wrong place", errBad, id)
	}
	if err := n.Check(); err != nil {
		return nil, fmt.Errorf("%w: record of %s: %w", errBad, id, err)
	}
	return rec, nil
}

// stamp orders the records of one node.
type stamp struct{ inc, ver uint64 }

func (s stamp) newer(t stamp) bool { return s.inc > t.inc || s.inc == t.inc && s.ver > t.ver }

func stampOf(n *mesh.Node) stamp { return stamp{n.Incarnation, n.Version} }

// digest is what a node knows, and where its records can be fetched.
type digest struct {
	from mesh.NodeID
	addr netip.AddrPort
	have map[mesh.NodeID]stamp
}

func (d *digest) encode(kind byte) []byte {
	w := writer{[]byte{kind}}
	w.id(d.from)
	w.addr(d.addr.Addr())
	w.uint(uint64(d.addr.Port()))
	w.uint(uint64(len(d.have)))
	for _, id := range slices.SortedFunc(maps.Keys(d.have), mesh.NodeID.Compare) {
		w.id(id)
		w.uint(d.have[id].inc)
		w.uint(d.have[id].ver)
	}
	return w.b
}

// maxNodes bounds a digest, and the nodes that a host knows.
const maxNodes = 100_000

var errFull = fmt.Errorf("%w: %d nodes are known, which is the most", errBad, maxNodes)

func decodeDigest(kind byte, b []byte) (*digest, error) {
	if len(b) == 0 || b[0] != kind {
		return nil, fmt.Errorf("%w: no digest of a version this agent knows", errBad)
	}
	r := reader{b: b[1:]}
	d := &digest{from: r.id(), addr: netip.AddrPortFrom(r.addr(), r.port()), have: map[mesh.NodeID]stamp{}}
	n := r.uint()
	if n > maxNodes {
		return nil, fmt.Errorf("%w: digest of %d nodes", errBad, n)
	}
	for ; n > 0 && !r.bad; n-- {
		d.have[r.id()] = stamp{r.uint(), r.uint()}
	}
	if r.bad || len(r.b) > 0 || !d.addr.IsValid() {
		return nil, fmt.Errorf("%w: digest ends in the wrong place", errBad)
	}
	return d, nil
}

// encodeMeta returns what memberlist spreads of a member: its key and a signature that binds key, name and address, so that
// who only knows the gossip key cannot speak for another host.
func encodeMeta(key crypto.Signer, name string, at netip.AddrPort) ([]byte, error) {
	pub, err := compress(key.Public())
	if err != nil {
		return nil, err
	}
	sig, err := sign(key, "meshagent member", metaText(name, at))
	return append(append([]byte{metaV1}, pub...), sig...), err
}

func metaText(name string, at netip.AddrPort) []byte { return []byte(name + " " + at.String()) }

func checkMeta(meta []byte, name string, at netip.AddrPort) error {
	if len(meta) != 1+keyLen+sigLen || meta[0] != metaV1 {
		return fmt.Errorf("%w: member %.40q has no proof of its key", errBad, name)
	}
	pub, id, err := decompress(meta[1 : 1+keyLen])
	if err != nil {
		return err
	}
	if id.String() != name || !verify(pub, "meshagent member", metaText(name, at), meta[1+keyLen:]) {
		return fmt.Errorf("%w: member %.40q at %v: its proof is wrong", errBad, name, at)
	}
	return nil
}

type writer struct{ b []byte }

func (w *writer) uint(v uint64) { w.b = binary.AppendUvarint(w.b, v) }
func (w *writer) str(s string)  { w.uint(uint64(len(s))); w.b = append(w.b, s...) }
func (w *writer) id(n mesh.NodeID) {
	b := n.Bytes()
	w.b = append(w.b, b[:]...)
}
func (w *writer) addr(a netip.Addr) { w.str(string(a.AsSlice())) }

func (w *writer) labels(l mesh.Labels) {
	w.uint(uint64(len(l)))
	for _, k := range slices.Sorted(maps.Keys(l)) {
		w.str(k)
		w.str(l[k])
	}
}

// reader reads fields off a slice; bad says that something did not fit.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) take(n uint64) []byte {
	if r.bad || n > uint64(len(r.b)) {
		r.bad = true
		return nil
	}
	v := r.b[:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) byte() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) uint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 || r.bad {
		r.bad = true
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) str() string { return string(r.take(r.uint())) }

func (r *reader) port() uint16 {
	v := r.uint()
	if v > 65535 {
		r.bad = true
	}
	return uint16(v)
}

func (r *reader) id() mesh.NodeID {
	b := r.take(16)
	if b == nil {
		return mesh.NodeID{}
	}
	return mesh.NodeIDFromBytes([16]byte(b))
}

func (r *reader) addr() netip.Addr {
	a, ok := netip.AddrFromSlice([]byte(r.str()))
	if !ok {
		r.bad = true
	}
	return a
}

func (r *reader) labels() mesh.Labels {
	n := r.uint()
	if n == 0 || r.bad {
		return nil
	}
	if n > mesh.MaxLabels {
		r.bad = true
		return nil
	}
	l := make(mesh.Labels, n)
	for range n {
		k := r.str()
		l[k] = r.str()
	}
	return l
}
