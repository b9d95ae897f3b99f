package main

import (
	"fmt"
	"io"
	"runtime"

	"github.com/spf13/cobra"
)

func newVersion() *cobra.Command {
	c := &cobra.Command{Use: "version", Short: "Show the version of this program", Example: "  meshagent version -o json", Args: argCount(0, 0)}
	out := outputFlag(c)
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		v := versions{version, runtime.Version(), runtime.GOOS, runtime.GOARCH}
		return out.print(cmd.OutOrStdout(), v, func(w io.Writer) { fmt.Fprintf(w, "meshagent %s, %s, %s/%s\n", v.Version, v.Go, v.OS, v.Arch) })
	}
	return c
}

type versions struct {
	Version string `json:"version"`
	Go      string `json:"go"`
	OS      string `json:"os"`
	Arch    string `json:"arch"`
}
