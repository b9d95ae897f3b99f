package registry

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/meshagent/meshagent/internal/strictyaml"
)

// ours reports whether a file of the directory is one to look at.
func ours(name string) bool {
	switch filepath.Ext(name) {
	case ".yaml", ".yml", ".json":
		return !strings.HasPrefix(name, ".")
	}
	return false
}

// scan returns a text that differs when a file of the directory was added, removed or written.
func scan(dir string) string {
	var b strings.Builder
	es, err := os.ReadDir(dir)
	if err != nil {
		fmt.Fprintln(&b, err)
	}
	for _, e := range es {
		if !ours(e.Name()) {
			continue
		}
		st, err := os.Stat(filepath.Join(dir, e.Name())) // where a link leads
		if err != nil {
			fmt.Fprintln(&b, err)
			continue
		}
		fmt.Fprintln(&b, e.Name(), st.Size(), st.ModTime().UnixNano(), st.Mode())
	}
	return b.String()
}

// readDir reads every file NAME.yaml of the directory. A directory that is not there defines nothing. The error joins all
// that is wrong.
func readDir(dir string, reserved netip.Prefix) ([]placed, error) {
	es, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("directory of services: %w", err)
	}
	var all []placed
	var errs strictyaml.Errors
	for _, e := range es {
		if !ours(e.Name()) {
			continue
		}
		name := filepath.Join(dir, e.Name())
		if ext := filepath.Ext(name); ext != ".yaml" {
			errs.Add(&strictyaml.Error{File: name, Msg: "only files that end in .yaml are read",
				Hint: "rename it to " + strings.TrimSuffix(e.Name(), ext) + ".yaml, or move it away"})
			continue
		}
		ps, err := readFile(name)
		errs.Add(err)
		all = append(all, ps...)
	}
	byID := make(map[string]*placed, len(all))
	for i := range all {
		p := &all[i]
		if q := byID[p.def.ID]; q != nil {
			errs.Add(&strictyaml.Error{File: p.file, Line: p.line, Path: "id", Msg: fmt.Sprintf("%q is that of service %s at %s", p.def.ID, q.def.Service(), q.place()),
				Hint: "remove one of the two, or give one another id"})
			continue
		}
		byID[p.def.ID] = p
		errs.Add(p.outside(reserved))
	}
	if len(all) > MaxServices {
		errs.Add(fmt.Errorf("%s: %d services: at most %d are possible", dir, len(all), MaxServices))
	}
	if err := errs.Err(); err != nil {
		return nil, err
	}
	return all, nil
}

// outside refuses an instance where the proxy listens: its calls would come back to it.
func (p *placed) outside(reserved netip.Prefix) error {
	if !reserved.IsValid() || !reserved.Contains(p.def.Address) {
		return nil
	}
	return &strictyaml.Error{File: p.file, Line: p.line, Path: "address", Msg: fmt.Sprintf("%v is one of those that the proxy gives to services (proxy.vipRange %v)", p.def.Address, reserved),
		Hint: "let the application listen elsewhere, or move proxy.vipRange"}
}

func readFile(name string) ([]placed, error) {
	st, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, &strictyaml.Error{File: name, Msg: "is not a file", Hint: "move it away"}
	}
	if st.Size() > strictyaml.MaxSize {
		return nil, &strictyaml.Error{File: name, Msg: fmt.Sprintf("%d bytes: at most %d are read", st.Size(), strictyaml.MaxSize)}
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	return parse(name, data)
}

// apiService is a service that the API registered.
type apiService struct {
	def    Definition
	source string
}

// stateVersion is the version of the state file that this program writes and the highest that it reads.
const stateVersion = 1

// stateFile is what the API said, as JSON.
type stateFile struct {
	Version     int               `json:"version"`
	Services    []string          `json:"services"` // definitions, word for word
	Maintenance []maintenanceItem `json:"maintenance"`
}

type maintenanceItem struct {
	Namespace string `json:"namespace"`
	ID        string `json:"id"`
	Reason    string `json:"reason"`
}

// loadState reads the state file; a missing one is empty. Its error says what to do.
func loadState(name string) (map[string]apiService, map[key]string, error) {
	api, m := map[string]apiService{}, map[key]string{}
	data, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return api, m, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("services registered over the API: %w", err)
	}
	var s stateFile
	if err = json.Unmarshal(data, &s); err == nil && s.Version < 1 {
		err = errors.New("it has no version")
	}
	if s.Version > stateVersion {
		return nil, nil, fmt.Errorf("%s was written by a newer meshagent (version %d, this one reads up to %d): install that one", name, s.Version, stateVersion)
	}
	for i, source := range s.Services {
		if err != nil {
			break
		}
		var ps []placed
		if ps, err = parse(fmt.Sprintf("services[%d]", i), []byte(source)); err == nil && len(ps) != 1 {
			err = fmt.Errorf("services[%d]: %d documents", i, len(ps))
		}
		if err == nil {
			api[ps[0].def.ID] = apiService{ps[0].def, source}
		}
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%s is damaged (%w): restore it from a backup, or remove it and register its services again", name, err)
	}
	for _, e := range s.Maintenance {
		m[key{e.Namespace, e.ID}] = e.Reason
	}
	return api, m, nil
}

func saveState(name string, api map[string]apiService, m map[key]string) error {
	s := stateFile{Version: stateVersion, Services: []string{}, Maintenance: []maintenanceItem{}}
	for _, id := range slices.Sorted(maps.Keys(api)) {
		s.Services = append(s.Services, api[id].source)
	}
	for k, reason := range m {
		s.Maintenance = append(s.Maintenance, maintenanceItem{k.namespace, k.id, reason})
	}
	slices.SortFunc(s.Maintenance, func(a, b maintenanceItem) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.ID, b.ID))
	})
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(name, data)
}

// writeFile replaces a file as a whole: what is there after a crash is the old content or the new one. Mode 0600.
func writeFile(name string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+"-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone already when all went well
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return err
	}
	if d, err := os.Open(filepath.Dir(name)); err == nil {
		d.Sync()
		d.Close()
	}
	return nil
}
