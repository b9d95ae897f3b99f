package strictyaml

import (
	"bytes"
	"encoding/json"

	yaml "go.yaml.in/yaml/v3"
)

// Encode returns a value as YAML, by its json tags and in their order. The error is that of json.Marshal.
func Encode(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	n, err := toYAML(d)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	e := yaml.NewEncoder(&out)
	e.SetIndent(2)
	if err := e.Encode(n); err != nil {
		return nil, err
	}
	return out.Bytes(), e.Close()
}

// toYAML reads the next value of d; nil at the end of a list or map.
func toYAML(d *json.Decoder) (*yaml.Node, error) {
	t, err := d.Token()
	if err != nil {
		return nil, err
	}
	switch x := t.(type) {
	case json.Delim:
		if x == ']' || x == '}' {
			return nil, nil
		}
		n := &yaml.Node{Kind: yaml.SequenceNode}
		if x == '{' {
			n.Kind = yaml.MappingNode
		}
		for {
			c, err := toYAML(d)
			if c == nil || err != nil {
				return n, err
			}
			n.Content = append(n.Content, c)
		}
	case json.Number:
		return &yaml.Node{Kind: yaml.ScalarNode, Value: x.String()}, nil
	case string:
		n := new(yaml.Node)
		if err := n.Encode(x); err != nil || n.ShortTag() == "!!str" {
			return n, err // the library knows which strings must be quoted,
		}
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Style: yaml.DoubleQuotedStyle, Value: x}, nil // but for <<
	}
	n := new(yaml.Node)
	return n, n.Encode(t) // true, false, null
}
