package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/oauth2"

	"github.com/meshagent/meshagent/agent/api"
)

// loginTime bounds a login, however long the issuer's codes are good.
const loginTime = 30 * time.Minute

func newLogin(g *globals) *cobra.Command {
	c := &cobra.Command{
		Use:   "login",
		Short: "Log in, to have a token for the API of another host",
		Long: `Logs in at the issuer that the other host's agent names (api.oidc): open the address that it shows in a browser, on any device, and
confirm the code. The token is kept in a file that you alone can read, below your configuration directory; verbs with the same --server
use it, and renew it where the issuer allows that.`,
		Example: "  meshagent login --server https://mesh.example.com:8501",
		Args:    argCount(0, 0),
	}
	issuerCA := c.Flags().String("issuer-ca", "", "file of the authorities that vouch for the issuer, instead of the system's")
	secretFile := c.Flags().String("client-secret-file", "", "file with the secret that the issuer gave to the command line, if it did")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		server, err := g.remote("log in")
		if err != nil {
			return err
		}
		l := &login{Server: server}
		if *issuerCA != "" {
			b, err := readFile(*issuerCA, nil, 1<<20)
			if err != nil {
				return err
			}
			l.IssuerCA = string(b)
		}
		if *secretFile != "" {
			if l.ClientSecret, err = readToken(*secretFile, nil); err != nil {
				return err
			}
		}
		ctx, cancel := context.WithTimeoutCause(cmd.Context(), loginTime, fmt.Errorf("nobody confirmed the login within %v", loginTime))
		defer cancel()
		return l.run(ctx, g, cmd.OutOrStdout(), cmd.ErrOrStderr())
	}
	return c
}

func newLogout(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "logout",
		Short: "Forget the login for the API of another host",
		Long: `Removes the file with the token, and has the issuer withdraw what could renew it, where it can. The token itself is good until its end:
that is soon, as a rule.`,
		Example: "  meshagent logout --server https://mesh.example.com:8501",
		Args:    argCount(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			server, err := g.remote("log out")
			if err != nil {
				return err
			}
			l, err := loadLogin(server)
			if err != nil {
				return err
			}
			if l == nil {
				return fmt.Errorf("there is no login for %s", server)
			}
			if err := l.forget(); err != nil {
				return err
			}
			if err := l.revoke(cmd.Context()); err != nil {
				fmt.Fprintf(cmd.ErrOrStderr(), "warning: the issuer did not withdraw the login: %s\n", clean(err.Error()))
			}
			fmt.Fprintf(cmd.OutOrStdout(), "logged out of %s\n", server)
			return nil
		},
	}
}

// remote returns the other host that a verb is about.
func (g *globals) remote(verb string) (string, error) {
	addr, err := g.address()
	if err != nil {
		return "", err
	}
	if !strings.HasPrefix(addr, "https:") {
		return "", usagef("say where to %s: --server https://HOST:PORT", verb)
	}
	return strings.TrimRight(addr, "/"), nil
}

// run logs in by the device flow (RFC 8628).
func (l *login) run(ctx context.Context, g *globals, out, show io.Writer) error {
	how, err := g.tls()
	if err != nil {
		return err
	}
	how.Certificate, how.Key = nil, nil
	c, err := api.NewClientTLS(l.Server, "", how)
	if err != nil {
		return err
	}
	at, err := c.Login(ctx)
	if err != nil {
		return err
	}
	l.Issuer, l.ClientID, l.Scopes = at.Issuer, at.ClientID, at.Scopes
	if err := l.discover(ctx); err != nil {
		return err
	}
	if err := l.confirm(ctx, show); err != nil {
		return err
	}
	if c, err = api.NewClientTLS(l.Server, l.IDToken, how); err != nil {
		return err
	}
	who, err := c.Whoami(ctx)
	if err != nil {
		return fmt.Errorf("logged in at %s, but the API does not take it: %w", l.Issuer, err)
	}
	if who.Role == "" {
		return fmt.Errorf("%s may do nothing: api.oidc.roles in the configuration of the mesh's servers says who may what", who.Name)
	}
	if err := l.save(); err != nil {
		return err
	}
	fmt.Fprintf(out, "logged in as %s, %s\n", clean(who.Name), clean(who.Role))
	return nil
}

// confirm has the user confirm the login on any device, and takes the token.
func (l *login) confirm(ctx context.Context, show io.Writer) error {
	ctx, err := l.client(ctx)
	if err != nil {
		return err
	}
	flow := l.config()
	var more []oauth2.AuthCodeOption
	if l.ClientSecret != "" { // package oauth2 leaves it out here
		more = append(more, oauth2.SetAuthURLParam("client_secret", l.ClientSecret))
	}
	code, err := flow.DeviceAuth(ctx, more...)
	if err != nil {
		return l.failed(ctx, err)
	}
	if u, err := url.Parse(code.VerificationURI); err != nil || u.Scheme != "https" && u.Scheme != "http" || code.UserCode == "" || code.DeviceCode == "" {
		return fmt.Errorf("issuer %s: it gave no code, or no address to confirm one", l.Issuer)
	}
	fmt.Fprintf(show, "To log in at %s\nopen %s\nand enter %s\n", clean(l.Issuer), clean(code.VerificationURI), clean(code.UserCode))
	if u := code.VerificationURIComplete; u != "" {
		fmt.Fprintf(show, "or open %s\n", clean(u))
	}
	tok, err := flow.DeviceAccessToken(ctx, code)
	if err != nil {
		return l.failed(ctx, err)
	}
	return l.take(tok)
}

// discover asks the issuer where to go (OpenID Connect Discovery 1.0, section 4; RFC 8628, section 4).
func (l *login) discover(ctx context.Context) error {
	ctx, err := l.client(ctx)
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(l.Issuer, "/")+"/.well-known/openid-configuration", nil)
	if err == nil {
		err = l.safe("issuer", l.Issuer)
	}
	if err != nil {
		return err
	}
	resp, err := ctx.Value(oauth2.HTTPClient).(*http.Client).Do(r)
	if err != nil {
		return l.failed(ctx, err)
	}
	defer resp.Body.Close()
	var c struct {
		Issuer  string   `json:"issuer"`
		Device  string   `json:"device_authorization_endpoint"`
		Token   string   `json:"token_endpoint"`
		Revoke  string   `json:"revocation_endpoint"`
		Methods []string `json:"token_endpoint_auth_methods_supported"`
	}
	switch err := json.NewDecoder(io.LimitReader(resp.Body, maxIssuer)).Decode(&c); {
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("issuer %s: its OpenID configuration is answered with status %d", l.Issuer, resp.StatusCode)
	case err != nil:
		return fmt.Errorf("issuer %s: its OpenID configuration cannot be read", l.Issuer)
	case c.Issuer != l.Issuer:
		return fmt.Errorf("issuer %s: it calls itself %.200q", l.Issuer, c.Issuer)
	case c.Device == "":
		return fmt.Errorf("issuer %s: it has no device flow: use a token, `meshagent apitoken create` on a server makes one", l.Issuer)
	}
	l.DeviceURL, l.TokenURL, l.RevokeURL = c.Device, c.Token, c.Revoke
	l.InParams = l.ClientSecret == "" || len(c.Methods) > 0 && !slices.Contains(c.Methods, "client_secret_basic")
	for _, u := range []struct{ name, at string }{{"device_authorization_endpoint", l.DeviceURL}, {"token_endpoint", l.TokenURL}} {
		if err := l.safe(u.name, u.at); err != nil {
			return err
		}
	}
	if l.RevokeURL != "" {
		return l.safe("revocation_endpoint", l.RevokeURL)
	}
	return nil
}

// maxIssuer bounds an answer of an issuer in bytes.
const maxIssuer = 1 << 20

// safe refuses what would tell secrets to everybody between: addresses without TLS that are not of this machine.
func (l *login) safe(what, at string) error {
	u, err := url.Parse(at)
	if err == nil && u.Host != "" && u.User == nil {
		ip := net.ParseIP(u.Hostname())
		if u.Scheme == "https" || u.Scheme == "http" && (u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()) {
			return nil
		}
	}
	return fmt.Errorf("issuer %s: %s %.200q is no address with https", clean(l.Issuer), what, at)
}

// client returns ctx with the client for the issuer, where package oauth2 looks for it.
func (l *login) client(ctx context.Context) (context.Context, error) {
	if c, ok := ctx.Value(oauth2.HTTPClient).(*http.Client); ok { // of a test
		return context.WithValue(ctx, oauth2.HTTPClient, c), nil
	}
	t := &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true,
		MaxResponseHeaderBytes: 64 << 10, IdleConnTimeout: time.Minute}
	if l.IssuerCA != "" {
		t.TLSClientConfig.RootCAs = x509.NewCertPool()
		if !t.TLSClientConfig.RootCAs.AppendCertsFromPEM([]byte(l.IssuerCA)) {
			return nil, errors.New("the file of the issuer's authorities has no certificate in PEM")
		}
	}
	return context.WithValue(ctx, oauth2.HTTPClient, &http.Client{Transport: t, Timeout: 30 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return errors.New("an issuer must not redirect") }}), nil
}

func (l *login) config() *oauth2.Config {
	c := &oauth2.Config{ClientID: l.ClientID, ClientSecret: l.ClientSecret, Scopes: l.Scopes,
		Endpoint: oauth2.Endpoint{DeviceAuthURL: l.DeviceURL, TokenURL: l.TokenURL, AuthStyle: oauth2.AuthStyleInHeader}}
	if l.InParams {
		c.Endpoint.AuthStyle = oauth2.AuthStyleInParams
	}
	return c
}

// take keeps what the issuer gave.
func (l *login) take(tok *oauth2.Token) error {
	id, _ := tok.Extra("id_token").(string)
	if id == "" {
		return fmt.Errorf("issuer %s: it gave no ID token: is openid among api.oidc.scopes?", l.Issuer)
	}
	if strings.Count(id, ".") != 2 || strings.ContainsAny(id, " \t\r\n") {
		return fmt.Errorf("issuer %s: what it gave is no ID token", l.Issuer)
	}
	l.IDToken = id
	if tok.RefreshToken != "" {
		l.RefreshToken = tok.RefreshToken
	}
	return nil
}

// failed says in plain words what an issuer answered.
func (l *login) failed(ctx context.Context, err error) error {
	e, ok := errors.AsType[*oauth2.RetrieveError](err)
	switch {
	case ok && e.ErrorCode == "access_denied":
		return fmt.Errorf("the login at %s was refused there", l.Issuer)
	case ok && (e.ErrorCode == "expired_token" || e.ErrorCode == "invalid_grant"):
		return fmt.Errorf("the login at %s has ended: `meshagent login --server %s` makes a new one", l.Issuer, l.Server)
	case ok && e.ErrorCode != "":
		return fmt.Errorf("issuer %s: %.100s %.300s", l.Issuer, e.ErrorCode, e.ErrorDescription)
	case ok:
		return fmt.Errorf("issuer %s: it answered with status %d", l.Issuer, e.Response.StatusCode)
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, context.DeadlineExceeded): // of the code
		return fmt.Errorf("nobody confirmed the login at %s as long as its code was good: do it again", l.Issuer)
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return fmt.Errorf("issuer %s: its certificate is of an authority that is not known here: name that by --issuer-ca", l.Issuer)
	}
	return fmt.Errorf("issuer %s: %w", l.Issuer, err)
}
