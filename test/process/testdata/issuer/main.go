// Package main is an issuer of OpenID Connect for tests: the server of zitadel/oidc, which is certified, with its example's pages and
// storage. Its client meshagent has the secret "secret" and knows the device flow; its user is alice, with the password "verysecure".
//
//	issuer PORT USERS
//
// USERS is a file in the format of its example.
package main

import (
	"fmt"
	"log/slog"
	"net/http"
	"os"

	"github.com/zitadel/oidc/v3/example/server/exampleop"
	"github.com/zitadel/oidc/v3/example/server/storage"
)

func main() {
	port, users := os.Args[1], os.Args[2]
	storage.RegisterClients(storage.DeviceClient("meshagent", "secret"))
	store, err := storage.StoreFromFile(users)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	router := exampleop.SetupServer("http://localhost:"+port+"/", storage.NewStorage(store), log, false)
	fmt.Fprintln(os.Stderr, http.ListenAndServe("127.0.0.1:"+port, router))
	os.Exit(1)
}
