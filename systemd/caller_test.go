package systemd

import (
	"strings"
	"testing"
)

func TestUnitOf(t *testing.T) {
	long := strings.Repeat("a", maxUnitName-len(".service"))
	for path, want := range map[string]string{
		"/system.slice/web.service":                                              "web.service",
		"/system.slice/a:b_c.service":                                            "a:b_c.service",
		`/system.slice/dev\x2dx.service`:                                         `dev\x2dx.service`,
		"/system.slice/_cpu.service":                                             "cpu.service", // systemd's own escape
		"/system.slice/" + long + ".service":                                     long + ".service",
		"/system.slice/worker@3.service":                                         "worker@3.service",
		"/system.slice/system-worker.slice/worker@3.service":                     "worker@3.service",
		`/system.slice/system-a\x2db.slice/a-b@x.service`:                        "a-b@x.service",
		`/system.slice/system-a\x5cx2db.slice/a\x2db@x.service`:                  `a\x2db@x.service`,
		`/system.slice/system-\x2ea.slice/.a@x.service`:                          ".a@x.service",
		`/system.slice/system-\x2ea.slice/_.a@x.service`:                         ".a@x.service",
		"/system.slice/system-worker.slice/web.service":                          "", // no instance of a template
		"/system.slice/system-worker.slice/web@3.service":                        "", // not of this one
		"/system.slice/system-worker.slice/x/worker@3.service":                   "",
		"/system.slice/system-worker.slice/system-worker.slice/x":                "",
		"/system.slice/" + long + "a.service":                                    "",
		"/system.slice/web.scope":                                                "",
		"/system.slice/web.socket":                                               "",
		"/system.slice/.service":                                                 "",
		"/system.slice/@3.service":                                               "",
		"/system.slice/we b.service":                                             "",
		"/system.slice/wéb.service":                                              "",
		"/system.slice/web.service ":                                             "",
		"/system.slice/web.service/":                                             "",
		"/system.slice/web.service/sub":                                          "",
		"/system.slice/web.service/db.service":                                   "", // delegated
		"/system.slice/app.slice/web.service":                                    "",
		"/system.slice/../system.slice/web.service":                              "",
		"/system.slice//web.service":                                             "",
		"system.slice/web.service":                                               "",
		"/web.service":                                                           "",
		"/system.slice":                                                          "",
		"/":                                                                      "",
		"":                                                                       "",
		"/machine.slice/web.service":                                             "",
		"/user.slice/user-1000.slice/web.service":                                "",
		"/user.slice/user-1000.slice/user@1000.service":                          "",
		"/user.slice/user-1000.slice/user@1000.service/system.slice/web.service": "",
		"/docker/abc/system.slice/web.service":                                   "",
	} {
		got, ok := unitOf(path)
		if got != want || ok != (want != "") {
			t.Errorf("%s: %q %v, want %q", path, got, ok, want)
		}
	}
}
