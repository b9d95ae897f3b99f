//go:build process && linux

package scenario

import (
	"context"
	"strings"
	"sync"

	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/protobuf/types/known/durationpb"
)

// counter is a service that counts for a whole mesh: each descriptor has as many calls as the application says, in an hour that does not end.
type counter struct {
	rlsv3.UnimplementedRateLimitServiceServer
	app *app

	mu   sync.Mutex
	used map[string]int // by domain and descriptor
}

// ShouldRateLimit notes the question as "DOMAIN KEY=VALUE KEY=VALUE", one line for each descriptor.
func (s *counter) ShouldRateLimit(_ context.Context, r *rlsv3.RateLimitRequest) (*rlsv3.RateLimitResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := &rlsv3.RateLimitResponse{OverallCode: rlsv3.RateLimitResponse_OK}
	var asked strings.Builder
	for _, d := range r.GetDescriptors() {
		of := r.GetDomain()
		for _, e := range d.GetEntries() {
			of += " " + e.GetKey() + "=" + e.GetValue()
		}
		asked.WriteString(of + "\n")
		st := &rlsv3.RateLimitResponse_DescriptorStatus{
			Code:               rlsv3.RateLimitResponse_OK,
			CurrentLimit:       &rlsv3.RateLimitResponse_RateLimit{RequestsPerUnit: uint32(s.app.counts), Unit: rlsv3.RateLimitResponse_RateLimit_HOUR},
			DurationUntilReset: &durationpb.Duration{Seconds: 3600},
		}
		if s.used[of]++; s.used[of] > s.app.counts {
			st.Code, out.OverallCode = rlsv3.RateLimitResponse_OVER_LIMIT, rlsv3.RateLimitResponse_OVER_LIMIT
		}
		out.Statuses = append(out.Statuses, st)
	}
	s.app.next(asked.String())
	return out, nil
}
