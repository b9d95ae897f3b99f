package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/meshagent/meshagent/agent/api"
)

// globals are the flags that every verb has. A token is no flag: command lines are seen by all users of a host.
type globals struct {
	addr, server, tokenFile, ca, cert, key string
}

func (g *globals) flags(c *cobra.Command) {
	f := c.PersistentFlags()
	f.StringVar(&g.addr, "addr", "",
		"the agent's API, unix:///PATH or http://127.0.0.1:PORT; $MESHAGENT_ADDR or "+api.DefaultAddr+" without it")
	f.StringVar(&g.server, "server", "",
		"the API of another host's agent, https://HOST:PORT; $MESHAGENT_SERVER without it")
	f.StringVar(&g.tokenFile, "token-file", "",
		"file with an API token, which changes need on clients and over http; $MESHAGENT_TOKEN without it")
	f.StringVar(&g.ca, "ca", "",
		"file of the authorities that vouch for the other host; $MESHAGENT_CA or the system's without it")
	f.StringVar(&g.cert, "cert", "", "file of your certificate, for the other host; $MESHAGENT_CERT without it")
	f.StringVar(&g.key, "key", "", "file of its key; $MESHAGENT_KEY without it")
}

// address returns where the API is: what a flag says counts before what the environment does.
func (g *globals) address() (string, error) {
	if g.addr != "" && g.server != "" {
		return "", usagef("give either --addr or --server")
	}
	if server := cmp.Or(g.server, os.Getenv("MESHAGENT_SERVER")); server != "" && g.addr == "" {
		if u, err := url.Parse(server); err != nil || u.Scheme != "https" {
			return "", fmt.Errorf("server %q: write https://HOST:PORT; agents of this host are reached by --addr", server)
		}
		return server, nil
	}
	return cmp.Or(g.addr, os.Getenv("MESHAGENT_ADDR"), api.DefaultAddr), nil
}

// tls reads the files for https.
func (g *globals) tls() (t api.TLS, err error) {
	for _, f := range []struct {
		into      *[]byte
		flag, env string
	}{{&t.CA, g.ca, "MESHAGENT_CA"}, {&t.Certificate, g.cert, "MESHAGENT_CERT"}, {&t.Key, g.key, "MESHAGENT_KEY"}} {
		if name := cmp.Or(f.flag, os.Getenv(f.env)); name != "" {
			if *f.into, err = readFile(name, nil, 1<<20); err != nil {
				return t, err
			}
			if len(*f.into) == 0 {
				return t, errors.New(name + " is empty")
			}
		}
	}
	return t, nil
}

// client returns what calls the API: with the token of the flag or the environment; for another host with the one of a login, unless a
// certificate is given.
func (g *globals) client(ctx context.Context) (*api.Client, error) {
	addr, err := g.address()
	if err != nil {
		return nil, err
	}
	token := os.Getenv("MESHAGENT_TOKEN")
	if g.tokenFile != "" {
		if token, err = readToken(g.tokenFile, nil); err != nil {
			return nil, err
		}
	}
	var how api.TLS
	if strings.HasPrefix(addr, "https:") {
		if how, err = g.tls(); err != nil {
			return nil, err
		}
		if token == "" && len(how.Certificate) == 0 {
			if token, err = loginToken(ctx, addr); err != nil {
				return nil, err
			}
		}
	}
	return api.NewClientTLS(addr, token, how)
}
