//go:build !linux

package registry

import "errors"

// watch is for Linux alone.
type watch struct{ changed chan struct{} }

func newWatch(string) (*watch, error) { return nil, errors.ErrUnsupported }
func (*watch) aim() bool              { return false }
func (*watch) close()                 {}
