package idle

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/shaker-exporter/shaker_exporter/shaker"
)

const s = time.Second

func TestBracketOf(t *testing.T) {
	survived := func(d time.Duration) Finding { return Finding{Idle: d, Kind: Survived, Outcome: shaker.Open} }
	lost := func(d time.Duration) Finding { return Finding{Idle: d, Kind: Lost, Outcome: shaker.Timeout} }
	told := func(d time.Duration) Finding { return Finding{Idle: d, Kind: Told, Outcome: shaker.Closed} }
	skipped := Finding{Kind: Skipped, Skipped: Late}
	for _, c := range []struct {
		name         string
		findings     []Finding
		want         bracket
		inconsistent bool
		unknown      bool
	}{
		{name: "all survived", findings: []Finding{survived(2 * s), survived(4 * s)}, want: bracket{survived: 4 * s}},
		{name: "all lost", findings: []Finding{lost(2 * s), lost(4 * s)}, want: bracket{lost: 2 * s}},
		{name: "between", findings: []Finding{survived(2 * s), skipped, lost(4 * s)},
			want: bracket{survived: 2 * s, lost: 4 * s}},
		{name: "told", findings: []Finding{survived(2 * s), told(3 * s), told(3*s + 1)},
			want: bracket{survived: 2 * s, lost: 3 * s, told: true}},
		{name: "silent before told", findings: []Finding{lost(2 * s), told(3 * s)}, want: bracket{lost: 2 * s}},
		{name: "contradiction", findings: []Finding{survived(2 * s), lost(4 * s), survived(6 * s), lost(8 * s)},
			want: bracket{survived: 2 * s, lost: 4 * s}, inconsistent: true},
		{name: "nothing", findings: []Finding{skipped, skipped}, unknown: true},
	} {
		got, consistent, ok := bracketOf(c.findings)
		if got != c.want || consistent == c.inconsistent || ok == c.unknown {
			t.Errorf("%s: bracketOf(%v) = %+v, consistent %t, ok %t; want %+v, %t, %t",
				c.name, c.findings, got, consistent, ok, c.want, !c.inconsistent, !c.unknown)
		}
	}
}

// answer measures steps on a path that forgets connections after a time.
func answer(steps []time.Duration, truth time.Duration) (b bracket) {
	for _, step := range steps {
		if step < truth {
			b.survived = step
		} else if b.lost == 0 {
			b.lost = step
		}
	}
	return b
}

// An inquiry finds the idle timeout of any path with any steps, to a second or 10%, in a few rounds, and follows a path
// that changes. What it reports holds the truth after each round, except that after a change, it may take until the
// refinement to refute what was found before.
func TestInquiry(t *testing.T) {
	random := rand.New(rand.NewPCG(18, 0))
	for range 20_000 {
		var fan []time.Duration
		for n := 1 + random.IntN(16); len(fan) < n; {
			if step := time.Duration(1+random.IntN(3600)) * s; !slices.Contains(fan, step) {
				fan = append(fan, step)
			}
		}
		slices.Sort(fan)
		i := inquiry{fan: fan}
		for path := range 3 { // one after the other
			truth := time.Duration(1+random.Int64N(4000_000)) * time.Millisecond
			fans, rounds := 0, 0
			for ; fans < 2; rounds++ {
				steps, isFan := i.next()
				if isFan {
					if fans++; fans > 1 {
						break
					}
				}
				if fans == 0 {
					i.take(answer(steps, truth), isFan)
					continue
				}
				longest := fan[len(fan)-1]
				if !slices.IsSorted(steps) || len(steps) > len(fan) || steps[0] < s || steps[len(steps)-1] > longest {
					t.Fatalf("the steps after the fan %v are %v, want 1 to %d from 1s to %v",
						fan, steps, len(fan), longest)
				}
				i.take(answer(steps, truth), isFan)
				got := i.report()
				refuted := got.survived >= truth || got.lost != 0 && got.lost < truth
				if refuted && (path == 0 || i.found.isNarrow()) {
					t.Fatalf("fan %v, truth %v: bracket %+v after round %d, want one that holds the truth",
						fan, truth, got, rounds)
				}
			}
			got := i.report()
			if truth > fan[len(fan)-1] {
				if got.lost != 0 {
					t.Fatalf("fan %v, truth %v: bracket %+v, want that all survive", fan, truth, got)
				}
				continue
			}
			if got.lost-got.survived > max(s, got.lost/10) && got.survived > 0 {
				t.Fatalf("fan %v, truth %v: bracket %+v is wide after %d rounds", fan, truth, got, rounds)
			}
			if most := 20; rounds > most {
				t.Fatalf("fan %v, truth %v: %d rounds, want %d at most", fan, truth, rounds, most)
			}
		}
	}
}

// While a path is measured again, the bracket stays as narrow as it was, unless it is refuted.
func TestInquiryKeepsBracket(t *testing.T) {
	fan := []time.Duration{10 * s, 100 * s, 200 * s}
	i := inquiry{fan: fan}
	measure := func(truth time.Duration) bracket {
		steps, isFan := i.next()
		i.take(answer(steps, truth), isFan)
		return i.report()
	}
	for !i.started || !i.found.isNarrow() {
		measure(150 * s)
	}
	narrow := i.report()
	if got := measure(150 * s); got != narrow || i.found.isNarrow() {
		t.Errorf("after the next fan: %+v, found %+v, want %+v and a wide bracket", got, i.found, narrow)
	}
	if got := measure(180 * s); got.survived < 175*s || got.lost != 200*s {
		t.Errorf("after a change: %+v, want what contradicts the earlier bracket, from 175s to 200s", got)
	}
	for !i.found.isNarrow() {
		measure(180 * s)
	}
	if got := measure(1000 * s); got != (bracket{survived: 200 * s}) {
		t.Errorf("after the limit has gone: %+v, want that 200s survived", got)
	}
}

// There is nothing to refine where a FIN or RST says the time.
func TestToldIsNotRefined(t *testing.T) {
	i := inquiry{fan: []time.Duration{10 * s, 100 * s}}
	i.take(bracket{survived: 10 * s, lost: 60 * s, told: true}, true)
	if steps, isFan := i.next(); !isFan {
		t.Errorf("the next round has the steps %v, want the configured ones", steps)
	}
}
