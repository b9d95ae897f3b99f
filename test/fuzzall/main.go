// Command fuzzall runs every fuzz target of the module, one after the other, each for a while: `make fuzz`.
package main

import (
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

var target = regexp.MustCompile(`(?m)^func (Fuzz\w+)\(`)

func main() {
	each := flag.String("time", "20s", "how long each target runs, as go test -fuzztime")
	only := flag.String("only", "", "run the targets whose package/Name contains this text")
	flag.Parse()
	if err := run(*each, *only); err != nil {
		fmt.Fprintln(os.Stderr, "fuzzall:", err)
		os.Exit(1)
	}
}

func run(each, only string) error {
	n := 0
	err := filepath.WalkDir(".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(p, "_test.go") {
			return err
		}
		text, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		for _, m := range target.FindAllSubmatch(text, -1) {
			pkg, name := "./"+filepath.ToSlash(filepath.Dir(p)), string(m[1])
			if !strings.Contains(pkg+"/"+name, only) {
				continue
			}
			n++
			fmt.Println("==", pkg, name)
			c := exec.Command("go", "test", "-run", "^$", "-fuzz", "^"+name+"$", "-fuzztime", each, pkg)
			c.Stdout, c.Stderr = os.Stdout, os.Stderr
			if err := c.Run(); err != nil {
				return fmt.Errorf("%s %s: %w (the input that failed is under testdata/fuzz: keep it as a test)", pkg, name, err)
			}
		}
		return nil
	})
	if err == nil && n == 0 {
		err = fmt.Errorf("no fuzz target matches %q", only)
	}
	return err
}
