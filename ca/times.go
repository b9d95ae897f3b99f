//go:build !shortlife

package ca

import "time"

// The times of a CA. The tag shortlife makes them seconds, for tests that see a whole rotation of a mesh of real processes.
const (
	defaultLeafTTL = 24 * time.Hour
	defaultSpread  = time.Hour

	checkEvery = time.Minute // Run looks whether something is due: rotation has days of room
)
