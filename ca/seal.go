package ca

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// Sealer keeps the CA's keys unreadable in the store, its log, its snapshots and its backups.
type Sealer interface {
	Seal(plain []byte) ([]byte, error)
	Open(sealed []byte) ([]byte, error)
}

// keySealer seals with AES-256-GCM under a key that every server has in a file.
type keySealer struct{ aead cipher.AEAD }

// sealV1 begins what a keySealer seals; other sealers take other bytes.
const sealV1 = 1

// NewKeySealer returns a Sealer for a key. Its nonces are random: at one sealing per rotation they do not repeat.
func NewKeySealer(key [32]byte) Sealer {
	b, err := aes.NewCipher(key[:])
	if err != nil {
		panic(err) // the length is right
	}
	a, err := cipher.NewGCMWithRandomNonce(b)
	if err != nil {
		panic(err)
	}
	return keySealer{a}
}

func (k keySealer) Seal(plain []byte) ([]byte, error) {
	return k.aead.Seal([]byte{sealV1}, nil, plain, []byte{sealV1}), nil
}

func (k keySealer) Open(sealed []byte) ([]byte, error) {
	if len(sealed) == 0 || sealed[0] != sealV1 {
		return nil, errors.New("sealed in another way")
	}
	plain, err := k.aead.Open(nil, nil, sealed[1:], sealed[:1])
	if err != nil {
		return nil, errors.New("wrong key or damaged")
	}
	return plain, nil
}

// NewKey returns a random key.
func NewKey() (k [32]byte) {
	rand.Read(k[:])
	return k
}

// LoadKey reads a key file: 64 hexadecimal digits, mode 0600. Errors say what to do.
func LoadKey(name string) (k [32]byte, err error) {
	st, err := os.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return k, fmt.Errorf("seal key %s is missing: without it this server cannot sign: copy it from another server, or let this one join again", name)
	}
	if err != nil {
		return k, fmt.Errorf("seal key: %w", err)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return k, fmt.Errorf("seal key %s can be read by others (mode %v): chmod 600 it", name, st.Mode().Perm())
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return k, fmt.Errorf("seal key: %w", err)
	}
	if k, err = ParseKey(b); err != nil {
		return k, fmt.Errorf("seal key %s is damaged: copy it from another server", name)
	}
	return k, nil
}

// ParseKey reads what FormatKey has written. The error does not hold it.
func ParseKey(b []byte) (k [32]byte, err error) {
	raw, err := hex.DecodeString(strings.TrimSpace(string(b)))
	if err != nil || len(raw) != len(k) {
		return k, errors.New("not 64 hexadecimal digits")
	}
	copy(k[:], raw)
	return k, nil
}

// FormatKey returns what a key file holds.
func FormatKey(k [32]byte) []byte { return []byte(hex.EncodeToString(k[:]) + "\n") }
