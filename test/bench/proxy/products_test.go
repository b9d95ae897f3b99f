//go:build linux

package main

import "testing"

func TestVersionIn(t *testing.T) {
	for said, want := range map[string]string{
		"nginx version: nginx/1.22.1\n":                                        "1.22.1",
		"HAProxy version 2.6.12-1+deb12u4 2026/01/01 - https://haproxy.org/\n": "2.6.12-1+deb12u4",
		"\n/opt/versions/3.11.7/bin/envoy  version: 9e5580933739775e8bce696a57a2e1bc99368f23/1.40.0/Clean/RELEASE/BoringSSL\n": "1.40.0",
		"no such command: it exists in the versions 3.11.7\n":                                                                  "of unknown version",
	} {
		if got := versionIn(said); got != want {
			t.Errorf("%q: %s, want %s", said, got, want)
		}
	}
}
