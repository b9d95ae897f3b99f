package agent

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"

	"github.com/meshagent/meshagent/agent/control"
	"github.com/meshagent/meshagent/mesh"
)

// snapshotV is the version of the cached snapshot.
const snapshotV = 1

// snapshotFile is what a start without servers begins with: policy, and the records of the others as they signed them.
type snapshotFile struct {
	Version   int                  `json:"version"`
	Index     uint64               `json:"index"`
	Policies  []mesh.Policy        `json:"policies"`
	Records   [][]byte             `json:"records"`
	Revoked   []control.Revocation `json:"revoked,omitempty"`
	Federated []control.Federation `json:"federated,omitempty"`
	Resolved  mesh.Resolved        `json:"resolved,omitempty"` // names of services outside
}

// loadSnapshot returns an empty snapshot with Version 0 when there is none that can be read: it is only a cache.
func (d dataDir) loadSnapshot() (s snapshotFile, err error) {
	b, err := os.ReadFile(d.path(fileSnapshot))
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err == nil && s.Version != snapshotV {
		err = errors.New("of another version")
	}
	if err != nil {
		return snapshotFile{}, err
	}
	return s, nil
}

func (d dataDir) saveSnapshot(s snapshotFile) error {
	s.Version = snapshotV
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return writeFile(d.path(fileSnapshot), b)
}
