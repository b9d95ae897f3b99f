package server

import (
	"bytes"
	"encoding/json"
	"reflect"
	"testing"

	"github.com/meshagent/meshagent/agent/api"
)

// FuzzDecodeJSON: what decodeJSON takes, encoding/json takes too and reads the same way; and what the Go client sends, it takes.
func FuzzDecodeJSON(f *testing.F) {
	for _, s := range []string{`{"writes":[]}`, `{"writes":[{"source":"a\nb","index":0},{"delete":{"group":"g","kind":"k","namespace":"n","name":"x"}}],"dryRun":true,"requestId":"1"}`,
		`{"writes":[{"index":18446744073709551615}]}`, `{"writes":[{"index":1e3}]}`, `{"writes":[{"source":"\ud800\u0000"}]}`, `{"writes":[],}`, `{"writes" :[ ] } `,
		`{"WRITES":[]}`, `{"writes":[null]}`, `{"writes":[{"delete":null}]}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var ours, theirs api.Apply
		if decodeJSON(b, &ours) != nil {
			return
		}
		d := json.NewDecoder(bytes.NewReader(b))
		d.DisallowUnknownFields()
		if err := d.Decode(&theirs); err != nil {
			t.Fatalf("%s: taken, but: %v", b, err)
		}
		if ours.Writes == nil { // an empty list
			ours.Writes = theirs.Writes
		}
		if !reflect.DeepEqual(ours, theirs) {
			t.Fatalf("%s: %+v, not %+v", b, ours, theirs)
		}
		sent, err := json.Marshal(theirs)
		if err != nil {
			t.Fatal(err)
		}
		var again api.Apply
		if err := decodeJSON(sent, &again); err != nil {
			t.Fatalf("%s: %v", sent, err)
		}
	})
}

// TestRequestTypesAreRead: decodeJSON reads every field of the types of requests.
func TestRequestTypesAreRead(t *testing.T) {
	for body, want := range map[string]any{
		`{"on":true,"reason":"r"}`:                             &api.Maintenance{On: true, Reason: "r"},
		`{"health":"critical","output":"o"}`:                   &api.TTL{Health: 2, Output: "o"},
		`{"server":true,"ttl":"1h","uses":2,"services":"a,b"}`: &api.TokenSpec{Server: true, TTL: "1h", Uses: 2, Services: "a,b"},
	} {
		got := reflect.New(reflect.TypeOf(want).Elem()).Interface()
		if err := decodeJSON([]byte(body), got); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v %v", body, got, err)
		}
		if v := reflect.ValueOf(want).Elem(); v.NumField() != bytes.Count([]byte(body), []byte(":")) {
			t.Errorf("%T has another number of fields than %s", want, body)
		}
	}
}
