//go:build shortlife

package ca

import "time"

const (
	defaultLeafTTL = 20 * time.Second
	defaultSpread  = 2 * time.Second

	checkEvery = time.Second
)
