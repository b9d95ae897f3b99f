package server

// Route is what tests from outside see of a route.
type Route struct {
	Method, Path string
	Query        []string
	Auth, Body   bool
	Stranger     bool
	On           string
}

// Routes returns all routes.
func Routes() (out []Route) {
	for _, r := range routes {
		out = append(out, Route{r.method, r.path, r.query, r.auth, r.body > 0, r.stranger, r.on})
	}
	return out
}
