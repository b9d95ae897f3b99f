package acme

import (
	"hash/fnv"
	"time"
)

// Times of a plan.
const (
	firstRetry = time.Minute
	longRetry  = 12 * time.Hour
)

// Renewal returns when a certificate is to be renewed: when a third of its life is left, and up to a thirtieth of it earlier, as name tells, so that
// those that were ordered together do not stay together.
func Renewal(notBefore, notAfter time.Time, name string) time.Time {
	life := notAfter.Sub(notBefore)
	return notAfter.Add(-life/3 - share(life/30, name))
}

// Again returns how long to wait after so many failures in a row: from a minute to 12 h, twice as long each time, and up to a quarter longer, as
// name tells; longer yet if the authority asks for it, a week at most.
func Again(failures int, after time.Duration, name string) time.Duration {
	d := longRetry
	if failures = max(failures, 1); failures < 11 {
		d = min(d, firstRetry<<(failures-1))
	}
	d += share(d/4, name)
	return max(d, min(after, 7*24*time.Hour))
}

// share returns a part of d that is always the same for one name.
func share(d time.Duration, name string) time.Duration {
	h := fnv.New32a()
	h.Write([]byte(name))
	return d / 1024 * time.Duration(h.Sum32()%1024)
}
