//go:build !shortlife

package ca

import "time"

// The times of a CA. The tag shortlife makes them seconds, for tests that see a whole rotation of a mesh of real processes.
const (
	// defaultLeafTTL is so long that nothing ends within a day without servers, whenever that begins: a certificate is renewed after 24 to 36 h. Who is
	// not trusted any more is revoked, which counts within seconds; ends are not for that.
	defaultLeafTTL = 60 * time.Hour
	defaultSpread  = time.Hour

	checkEvery = time.Minute // Run looks whether something is due: rotation has days of room
)
