//go:build !linux

package systemd

import (
	"errors"
	"os"
)

func storeFile(string, string, *os.File) error { return errors.ErrUnsupported }
