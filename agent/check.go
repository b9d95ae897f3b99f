package agent

import (
	"fmt"
	"log/slog"
	"os"

	"github.com/meshagent/meshagent/agent/registry"
)

// CheckServices reports everything that is wrong with a directory of service definitions, as a start would find it, and how
// many services there are. It touches nothing.
func CheckServices(dir string) (int, error) {
	if st, err := os.Stat(dir); err != nil || !st.IsDir() {
		return 0, fmt.Errorf("services: %s is not a directory", dir)
	}
	r := registry.New(registry.Config{Dir: dir, Log: slog.New(slog.DiscardHandler)})
	if err := r.Load(); err != nil {
		return 0, err
	}
	return len(r.State().Services), nil
}
