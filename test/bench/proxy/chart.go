//go:build linux

package main

import (
	"encoding/xml"
	"fmt"
	"slices"
	"strings"
)

// colours of the products; others have the last one.
var colours = map[string]string{floorName: "#9a9a9a", "nginx": "#3a9d5d", "HAProxy": "#3b78c2", "HAProxy, h1 between": "#8fb5e3", "Envoy": "#9a5bb5", "meshagent": "#e0752d"}

const (
	chartWidth = 860
	barLeft    = 170
	barRight   = 740
	barHeight  = 16
	groupGap   = 34
)

// chart is an SVG of the processor time per request: a group of bars for each workload of the short run, drawn to its own scale.
func (r *run) chart() string {
	m := metrics[0]
	var b strings.Builder
	y := 58
	for _, w := range r.workloads {
		if !m.with(w) || !slices.Contains(workloads(false), w) {
			continue
		}
		type bar struct {
			name string
			v    float64
		}
		var bars []bar
		most := 0.0
		for _, p := range r.products {
			if p.name == floorName && w.hops > 1 { // it is one hop
				continue
			}
			if f := r.figure(m, w, p); f.ok() && p.name != directName {
				bars = append(bars, bar{p.name, median(f.all)})
				most = max(most, median(f.all))
			}
		}
		if len(bars) == 0 || most <= 0 {
			continue
		}
		hops := "one hop"
		if w.hops == 2 {
			hops = "two hops, mTLS"
		}
		y += groupGap - barHeight
		text(&b, 12, y, "start", "bold", fmt.Sprintf("%s, %s, %s, %s", hops, w.protocol(), w.size(), w.load()))
		y += 8
		for _, bar := range bars {
			colour, ok := colours[bar.name]
			if !ok {
				colour = "#555555"
			}
			width := max(1, int(bar.v/most*(barRight-barLeft)))
			fmt.Fprintf(&b, `<rect x="%d" y="%d" width="%d" height="%d" rx="2" fill="%s"/>`+"\n", barLeft, y, width, barHeight-3, colour)
			weight := "normal"
			if bar.name == "meshagent" {
				weight = "bold"
			}
			text(&b, barLeft-8, y+barHeight-5, "end", weight, bar.name)
			text(&b, barLeft+width+6, y+barHeight-5, "start", weight, significant(bar.v)+" µs")
			y += barHeight
		}
	}
	y += 16
	head := fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" font-family="system-ui, sans-serif" font-size="12" role="img" aria-label="Processor time per request">`+"\n"+
		"<style>text { fill: #1f2328 } @media (prefers-color-scheme: dark) { text { fill: #e6edf3 } }</style>\n", chartWidth, y, chartWidth, y)
	var title strings.Builder
	text(&title, 12, 24, "start", "bold", "Processor time per request: less is better")
	text(&title, 12, 42, "start", "normal", "User and system time of the proxy processes. Each group has a scale of its own.")
	return head + title.String() + b.String() + "</svg>\n"
}

func text(b *strings.Builder, x, y int, anchor, weight, s string) {
	fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="%s" font-weight="%s">`, x, y, anchor, weight)
	xml.EscapeText(b, []byte(s))
	b.WriteString("</text>\n")
}
