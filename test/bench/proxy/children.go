//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// children are the processes that the bench started, each the leader of a group of its own.
type children struct {
	dir  string
	pids *os.File // their ids, one a line, for run.sh to end them should the bench be killed
	all  []*child
}

type child struct {
	name string
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	log  string
}

func newChildren(dir string) (*children, error) {
	f, err := os.Create(filepath.Join(dir, "pids"))
	return &children{dir: dir, pids: f}, err
}

// start starts a program whose output goes to a file.
func (cs *children) start(name string, env []string, argv ...string) (*child, error) {
	c := &child{name: name, cmd: exec.Command(argv[0], argv[1:]...), done: make(chan struct{}), log: filepath.Join(cs.dir, name+".log")}
	f, err := os.Create(c.log)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	c.cmd.Env = append(os.Environ(), env...)
	c.cmd.Stdout, c.cmd.Stderr = f, f
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() { c.cmd.Wait(); close(c.done) }()
	cs.all = append(cs.all, c)
	_, err = fmt.Fprintln(cs.pids, c.cmd.Process.Pid)
	return c, err
}

// stop asks all to end, the last one first, and kills what has not ended in time.
func (cs *children) stop() {
	for _, c := range slices.Backward(cs.all) {
		c.cmd.Process.Signal(syscall.SIGTERM)
	}
	late := time.After(10 * time.Second)
	for _, c := range cs.all {
		select {
		case <-c.done:
		case <-late:
		}
		syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL) // also what a leader left behind
		<-c.done
	}
	cs.pids.Truncate(0)
	cs.pids.Close()
}

// check says when a child has ended.
func (c *child) check() error {
	select {
	case <-c.done:
		return fmt.Errorf("%s ended (%v); its log:\n%s", c.name, c.cmd.ProcessState, tail(c.log))
	default:
		return nil
	}
}

func tail(file string) string {
	b, _ := os.ReadFile(file)
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-12):], "\n")
}

// await asks until it is so, 20 s at most, or until one of the children has ended.
func await(ctx context.Context, what string, f func() error, cs ...*child) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		err := f()
		if err == nil {
			return nil
		}
		for _, c := range cs {
			if err := c.check(); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited in vain for %s: %w", what, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// output runs a program to its end and returns what it printed.
func output(ctx context.Context, env []string, argv ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.Output()
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(argv[:min(2, len(argv))], " "), err, e.Stderr)
	}
	return string(out), err
}
