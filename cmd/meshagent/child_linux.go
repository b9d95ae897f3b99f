package main

import "syscall"

// childAttr makes a child end with its parent, even when that is killed, and keeps the terminal's Ctrl-C from it: the
// parent stops its children in order.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}
