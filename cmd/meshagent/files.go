package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/meshagent/meshagent/internal/strictyaml"
	"github.com/meshagent/meshagent/mesh"
	"github.com/meshagent/meshagent/mesh/policy"
)

// policyExts are the names of policy files in a directory.
var policyExts = []string{".yaml", ".yml", ".json"}

func fileFlag(c *cobra.Command) *[]string {
	return c.Flags().StringArrayP("file", "f", nil, "file of policies, directory of such files, or - for standard input; again for more")
}

func nameOf(file string) string {
	if file == "-" {
		return "standard input"
	}
	return file
}

// readFile reads a file of at most max bytes, stdin when it is "-".
func readFile(file string, stdin io.Reader, max int64) ([]byte, error) {
	r := stdin
	if file != "-" || stdin == nil {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		r = f
	}
	b, err := io.ReadAll(io.LimitReader(r, max+1))
	if err == nil && int64(len(b)) > max {
		err = fmt.Errorf("more than %d bytes", max)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", nameOf(file), err)
	}
	return b, nil
}

// expand replaces directories by the policy files in them, in order.
func expand(names []string) (out []string, err error) {
	for _, name := range names {
		st, err := os.Stat(name)
		if name == "-" || err == nil && !st.IsDir() {
			out = append(out, name)
			continue
		}
		if err != nil {
			return nil, err
		}
		entries, err := os.ReadDir(name)
		if err != nil {
			return nil, err
		}
		n := len(out)
		for _, e := range entries {
			if slices.Contains(policyExts, filepath.Ext(e.Name())) && e.Name()[0] != '.' && !e.IsDir() {
				out = append(out, filepath.Join(name, e.Name()))
			}
		}
		if len(out) == n {
			return nil, fmt.Errorf("%s: no .yaml, .yml or .json file is in it", name)
		}
	}
	return out, nil
}

// readPolicies reads all policies of files and directories. It tells everything that is wrong in all of them.
func readPolicies(names []string, stdin io.Reader) ([]mesh.Policy, error) {
	if len(names) == 0 {
		return nil, usagef("give a file with -f")
	}
	files, err := expand(names)
	if err != nil {
		return nil, err
	}
	var out []mesh.Policy
	var errs []error
	where := map[mesh.PolicyKey]string{}
	for _, f := range files {
		data, err := readFile(f, stdin, strictyaml.MaxSize)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		ps, err := policy.Parse(nameOf(f), data)
		if err != nil {
			errs = append(errs, err)
		}
		for _, p := range ps {
			if other, ok := where[p.PolicyKey]; ok {
				errs = append(errs, fmt.Errorf("%s: %s is in %s too; remove one", nameOf(f), show(p.PolicyKey), other))
			}
			where[p.PolicyKey] = nameOf(f)
		}
		out = append(out, ps...)
	}
	return out, errors.Join(errs...)
}
