package main

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/oauth2"
)

// login is what is kept of a login for the API of another host: a file that its user alone can read.
type login struct {
	Version      int      `json:"version"`
	Server       string   `json:"server"`
	Issuer       string   `json:"issuer"`
	IssuerCA     string   `json:"issuerCA,omitempty"` // PEM
	ClientID     string   `json:"clientID"`
	ClientSecret string   `json:"clientSecret,omitempty"`
	InParams     bool     `json:"inParams,omitempty"` // how the issuer takes both
	Scopes       []string `json:"scopes"`
	DeviceURL    string   `json:"-"`
	TokenURL     string   `json:"tokenURL"`
	RevokeURL    string   `json:"revokeURL,omitempty"`
	IDToken      string   `json:"idToken"`
	RefreshToken string   `json:"refreshToken,omitempty"`
}

const (
	loginVersion = 1
	maxLogin     = 256 << 10 // bytes of the file
	renewTime    = 30 * time.Second
	renewBefore  = time.Minute // the end of a token
)

// loginPath is where the login for a server is kept.
func loginPath(server string) (string, error) {
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", fmt.Errorf("where logins are kept is not known: %w", err)
	}
	h := sha256.Sum256([]byte(strings.ToLower(server)))
	return filepath.Join(dir, "meshagent", "logins", hex.EncodeToString(h[:16])+".json"), nil
}

// loadLogin returns the login for a server; nil without one.
func loadLogin(server string) (*login, error) {
	name, err := loginPath(server)
	if err != nil {
		return nil, nil // who has no place for it has none
	}
	st, err := os.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if runtime.GOOS != "windows" && (!st.Mode().IsRegular() || st.Mode().Perm()&0o077 != 0) {
		return nil, fmt.Errorf("%s holds a token, and is open to others (mode %04o): remove it, and log in again", name, st.Mode().Perm())
	}
	b, err := readFile(name, nil, maxLogin)
	if err != nil {
		return nil, err
	}
	l := &login{}
	if json.Unmarshal(b, l) != nil || l.Version != loginVersion || !strings.EqualFold(l.Server, server) || l.IDToken == "" {
		return nil, fmt.Errorf("%s is damaged, or of another version: remove it, and log in again", name)
	}
	return l, nil
}

// save replaces the file as a whole.
func (l *login) save() error {
	name, err := loginPath(l.Server)
	if err != nil {
		return err
	}
	l.Version = loginVersion
	b, err := json.Marshal(l)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(name), ".login-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // when it has not become name
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}

func (l *login) forget() error {
	name, err := loginPath(l.Server)
	if err != nil {
		return err
	}
	return os.Remove(name)
}

// ends is when the ID token ends; zero if it does not say so. The API verifies it, nobody here does.
func (l *login) ends() time.Time {
	part := strings.Split(l.IDToken, ".")
	if len(part) != 3 {
		return time.Time{}
	}
	b, err := base64.RawURLEncoding.DecodeString(part[1])
	var claims struct {
		Exp float64 `json:"exp"`
	}
	if err != nil || json.Unmarshal(b, &claims) != nil || claims.Exp <= 0 {
		return time.Time{}
	}
	return time.Unix(int64(claims.Exp), 0)
}

// loginToken returns the token of the login for a server, renewed if it is near its end; "" without a login.
func loginToken(ctx context.Context, server string) (string, error) {
	server = strings.TrimRight(server, "/")
	l, err := loadLogin(server)
	if l == nil || err != nil {
		return "", err
	}
	if end := l.ends(); time.Until(end) > renewBefore {
		return l.IDToken, nil
	}
	if l.RefreshToken == "" {
		return "", l.failed(ctx, &oauth2.RetrieveError{ErrorCode: "expired_token"})
	}
	used := l.RefreshToken
	err = l.renew(ctx)
	if err == nil {
		return l.IDToken, l.save()
	}
	// Another verb may have been faster: a renewal can be used once with some issuers.
	if again, _ := loadLogin(server); again != nil && again.RefreshToken != used && time.Until(again.ends()) > renewBefore {
		return again.IDToken, nil
	}
	return "", err
}

// renew has the issuer give another ID token (OpenID Connect Core 1.0, section 12).
func (l *login) renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, renewTime, fmt.Errorf("issuer %s: it did not answer within %v", l.Issuer, renewTime))
	defer cancel()
	ctx, err := l.client(ctx)
	if err != nil {
		return err
	}
	tok, err := l.config().TokenSource(ctx, &oauth2.Token{RefreshToken: l.RefreshToken}).Token()
	if err != nil {
		return l.failed(ctx, err)
	}
	return l.take(tok)
}

// revoke has the issuer withdraw what renews the login (RFC 7009), where it can.
func (l *login) revoke(ctx context.Context) error {
	if l.RefreshToken == "" || l.RevokeURL == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, renewTime)
	defer cancel()
	ctx, err := l.client(ctx)
	if err != nil {
		return err
	}
	form := url.Values{"token": {l.RefreshToken}, "token_type_hint": {"refresh_token"}}
	if l.InParams {
		form.Set("client_id", l.ClientID)
		if l.ClientSecret != "" {
			form.Set("client_secret", l.ClientSecret)
		}
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, l.RevokeURL, strings.NewReader(form.Encode()))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if !l.InParams {
		r.SetBasicAuth(url.QueryEscape(l.ClientID), url.QueryEscape(l.ClientSecret))
	}
	resp, err := ctx.Value(oauth2.HTTPClient).(*http.Client).Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxIssuer))
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("it answered with status %d", resp.StatusCode)
	}
	return nil
}
