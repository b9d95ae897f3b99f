package systemd

import (
	"fmt"
	"path"
	"strings"
)

// Peer is the owner of one end of a connection.
type Peer struct {
	UID  uint32 // who opened the socket
	Unit string // the systemd service in which it was opened, such as web.service or worker@3.service; "" for none
}

const maxUnitName = 255 // systemd's own limit

// unitOf returns the service whose control group has the path, as seen from the root of the hierarchy. It is strict, since
// users make control groups of any name below those that are delegated to them: only the very places where systemd itself puts
// system services count, /system.slice/NAME.service and, for instances of templates,
// /system.slice/system-PREFIX.slice/PREFIX@INSTANCE.service. A service that is moved to another slice is not known by its unit.
func unitOf(cgroup string) (string, bool) {
	dir, name := path.Split(cgroup)
	name = strings.TrimPrefix(name, "_") // systemd puts it before names that the kernel keeps for itself, such as cpu.service
	base, ok := strings.CutSuffix(name, ".service")
	if !ok || len(name) > maxUnitName || strings.IndexFunc(base, notInUnitNames) >= 0 {
		return "", false
	}
	prefix, _, template := strings.Cut(base, "@")
	if prefix == "" {
		return "", false
	}
	if dir == systemSlice+"/" || template && dir == systemSlice+"/"+templateSlice(prefix)+"/" {
		return name, true
	}
	return "", false
}

const systemSlice = "/system.slice"

func notInUnitNames(r rune) bool {
	return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune(`:-_.\@`, r))
}

// templateSlice returns the slice in which systemd puts the instances of a template: what has a meaning in names of slices is
// escaped.
func templateSlice(prefix string) string {
	var b strings.Builder
	b.WriteString("system-")
	for i, r := range prefix {
		if r == '-' || r == '\\' || r == '.' && i == 0 {
			fmt.Fprintf(&b, `\x%02x`, r)
		} else {
			b.WriteRune(r)
		}
	}
	b.WriteString(".slice")
	return b.String()
}
