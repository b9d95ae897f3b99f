package agent

import (
	"fmt"
	"maps"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"

	"github.com/meshagent/meshagent/agent/access"
	"github.com/meshagent/meshagent/agent/audit"
)

// checkUsers reports what is wrong with api.users.
func (a *API) checkUsers(bad func(field, format string, args ...any)) {
	for _, name := range slices.Sorted(maps.Keys(a.Users)) {
		field := "api.users." + name
		if strings.TrimPrefix(name, "@") == "" || strings.ContainsAny(name, " :/") {
			bad(field, "%q is neither the name of a user nor @ with the name of a group", name)
		}
		if _, err := access.ParseRole(a.Users[name]); err != nil {
			bad(field, "%v", err)
		}
	}
}

// role says who is at the unix socket and what he may do: root and the agent's own user everything; others what api.users says of them or
// of one of their groups, of several the most; and whom it does not name, but the socket's mode lets in, only looks. Where the system does
// not say who it is, the mode decides alone. Groups are looked up each time, so that a change counts at once.
func (a *API) role(uid, gid uint32, known bool) (string, access.Role) {
	if !known {
		return "socket", access.Admin
	}
	id := strconv.FormatUint(uint64(uid), 10)
	u, err := user.LookupId(id)
	if err != nil {
		u = &user.User{Username: "uid " + id, Uid: id, Gid: strconv.FormatUint(uint64(gid), 10)}
	}
	if uid == 0 || int(uid) == os.Geteuid() {
		return u.Username, access.Admin
	}
	groups := []string{strconv.FormatUint(uint64(gid), 10)}
	if err == nil {
		if more, err := u.GroupIds(); err == nil {
			groups = append(groups, more...)
		}
	}
	names := []string{u.Username}
	for _, g := range groups {
		if g, err := user.LookupGroupId(g); err == nil {
			names = append(names, "@"+g.Name)
		}
	}
	return u.Username, a.most(names)
}

// most returns the most that one of the names may do.
func (a *API) most(names []string) access.Role {
	best := access.Viewer
	for _, n := range names {
		if r := access.Role(a.Users[n]); slices.Index(access.Roles, r) > slices.Index(access.Roles, best) {
			best = r
		}
	}
	return best
}

// openAudit opens the audit log, unless it is off.
func (a *Agent) openAudit() error {
	if a.cfg.API.AuditLog == "off" {
		return nil
	}
	l, err := audit.Open(a.cfg.API.AuditLog)
	if err != nil {
		return fmt.Errorf("api.auditLog: %w", err)
	}
	a.audit = l
	a.alone = append(a.alone, func() { l.Close() })
	return nil
}

// recordAudit records what a server was asked for.
func (a *Agent) recordAudit(e audit.Event) error {
	if a.audit == nil {
		return nil
	}
	_, err := a.audit.Append(e)
	return err
}
