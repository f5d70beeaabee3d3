package prune

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"gonum.org/v1/gonum/blas/blas32"

	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/layer"
)

// randomScores have many ties, zeros among them, in a matrix that is wider than its
// columns.
func randomScores(rng *rand.Rand, rows, cols int) blas32.General {
	a := blas32.General{Rows: rows, Cols: cols, Stride: cols + rng.IntN(3)}
	a.Data = make([]float32, rows*a.Stride)
	distinct := 1 + rng.IntN(2*rows*cols)
	for i := range a.Data {
		a.Data[i] = float32(rng.IntN(distinct)) / 7 * float32(math.Exp2(float64(rng.IntN(3))))
		if rng.IntN(50) == 0 {
			a.Data[i] = float32(math.Copysign(0, -1))
		}
	}
	return a
}

// survivorsOf sorts the scores of the given units and returns which of them stay when
// pruned go, lower scores and then lower indices first.
func survivorsOf(scores []float64, pruned int) []bool {
	order := make([]int, len(scores))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(i, j int) int {
		switch {
		case scores[i] < scores[j]:
			return -1
		case scores[i] > scores[j]:
			return 1
		}
		return 0
	})
	keep := make([]bool, len(scores))
	for _, i := range order[pruned:] {
		keep[i] = true
	}
	return keep
}

func flat(a blas32.General) []float64 {
	var out []float64
	for r := range a.Rows {
		for _, v := range matrixRow(a, r) {
			out = append(out, float64(v))
		}
	}
	return out
}

func maskBools(m *layer.Mask) []bool {
	var out []bool
	for r := range m.Rows {
		for c := range m.Cols {
			out = append(out, m.At(r, c))
		}
	}
	return out
}

func TestSelectUnstructuredAgainstSorting(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for trial := range 600 {
		rows, cols := 1+rng.IntN(9), 1+rng.IntN(150)
		switch trial % 10 {
		case 0:
			rows = 1
		case 1:
			cols = 1
		}
		scores := randomScores(rng, rows, cols)
		size := rows * cols
		survivors := rng.IntN(size + 1)
		switch trial % 7 {
		case 0:
			survivors = size
		case 1:
			survivors = min(size, 1)
		case 2:
			survivors = 0
		}
		for _, scope := range []Scope{"", PerLayer, PerRow} {
			mask, rescued, err := Select(t.Context(), pool.New(2), scores, Selection{Scope: scope, Survivors: survivors})
			if err != nil {
				t.Fatal(err)
			}
			var want []bool
			if scope != PerRow || survivors == 0 {
				want = survivorsOf(flat(scores), min(size-survivors, size-1))
			} else {
				pruned, total := size-survivors, 0
				for r := range rows {
					k := (r+1)*pruned/rows - r*pruned/rows
					if d := k - pruned/rows; d < 0 || d > 1 {
						t.Fatalf("row %d prunes %d of %d in all", r, k, pruned)
					}
					total += k
					want = append(want, survivorsOf(flat(scoreRow(scores, r)), k)...)
				}
				if total != pruned {
					t.Fatalf("rows prune %d, want %d", total, pruned)
				}
			}
			if got := maskBools(mask); !slices.Equal(got, want) {
				t.Fatalf("%d×%d, %d survivors, scope %q: wrong mask", rows, cols, survivors, scope)
			}
			if (rescued == 1) != (survivors == 0) || mask.Survivors() != max(1, survivors) {
				t.Fatalf("%d survivors asked, %d kept, %d rescued", survivors, mask.Survivors(), rescued)
			}
			for r := range rows {
				if words := mask.Row(r); cols%64 != 0 && words[len(words)-1]>>(cols%64) != 0 {
					t.Fatal("bits past the last column are set")
				}
			}
		}
	}
}

func TestSelectNofM(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 300 {
		m := 2 + rng.IntN(6)
		if rng.IntN(5) == 0 {
			m = 60 + rng.IntN(30) // both sides of rankLimit
		}
		p := Pattern{Kind: NofM, N: 1 + rng.IntN(m-1), M: m}
		rows, cols := 1+rng.IntN(5), 1+rng.IntN(200)
		scores := randomScores(rng, rows, cols)
		survivors := p.Survivors(rows, cols, 0)
		mask, _, err := Select(t.Context(), pool.New(2), scores, Selection{Pattern: p, Survivors: survivors})
		if err != nil {
			t.Fatal(err)
		}
		if mask.Survivors() != survivors {
			t.Fatalf("%s of %d×%d keeps %d, foretold %d", p, rows, cols, mask.Survivors(), survivors)
		}
		for r := range rows {
			row := flat(scoreRow(scores, r))
			for from := 0; from < cols; from += m {
				group := row[from:min(cols, from+m)]
				keep := int(math.Ceil(float64(p.N*len(group)) / float64(m)))
				for i, want := range survivorsOf(group, len(group)-keep) {
					if mask.At(r, from+i) != want {
						t.Fatalf("%s of %d×%d: row %d, group at %d: wrong", p, rows, cols, r, from)
					}
				}
			}
		}
	}
	_, _, err := Select(t.Context(), pool.New(1), randomScores(rng, 2, 8), Selection{Pattern: Pattern{Kind: NofM, N: 2, M: 4}, Survivors: 7})
	if e := (*ShapeError)(nil); !errors.As(err, &e) || !strings.Contains(err.Error(), "keeps 8") {
		t.Errorf("7 survivors of 2:4: %v", err)
	}
}

func TestSelectBlocks(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for trial := range 300 {
		p := Pattern{Kind: Blocks, Rows: 1 + rng.IntN(5), Cols: 2 + rng.IntN(7)}
		rows, cols := 1+rng.IntN(12), 1+rng.IntN(90)
		if trial%2 == 0 { // whole blocks
			rows, cols = p.Rows*(1+rng.IntN(4)), p.Cols*(1+rng.IntN(9))
		}
		scores := randomScores(rng, rows, cols)
		size := rows * cols
		survivors := rng.IntN(size + 1)
		mask, rescued, err := Select(t.Context(), pool.New(2), scores, Selection{Pattern: p, Survivors: survivors})
		if err != nil {
			t.Fatal(err)
		}
		var rms []float64
		for r := 0; r < rows; r += p.Rows {
			for c := 0; c < cols; c += p.Cols {
				sum, n := 0.0, 0
				for i := r; i < min(rows, r+p.Rows); i++ {
					for _, v := range matrixRow(scores, i)[c:min(cols, c+p.Cols)] {
						sum += float64(v) * float64(v)
						n++
					}
				}
				rms = append(rms, float64(float32(math.Sqrt(sum/float64(n)))))
			}
		}
		pruned := int(math.RoundToEven(float64(size-survivors) / float64(size) * float64(len(rms))))
		if all := pruned == len(rms); all != (rescued > 0) || all && rescued != mask.Survivors() {
			t.Fatalf("%d of %d blocks go: %d rescued", pruned, len(rms), rescued)
		}
		want, across := survivorsOf(rms, min(pruned, len(rms)-1)), (cols+p.Cols-1)/p.Cols
		for r := range rows {
			for c := range cols {
				if mask.At(r, c) != want[r/p.Rows*across+c/p.Cols] {
					t.Fatalf("%s of %d×%d: (%d, %d) is wrong", p, rows, cols, r, c)
				}
			}
		}
		if share := p.Survivors(rows, cols, 0.5); trial%2 == 0 && len(rms)%2 == 0 {
			mask, _, err := Select(t.Context(), pool.New(1), scores, Selection{Pattern: p, Survivors: share})
			if err != nil || mask.Survivors() != size/2 {
				t.Fatalf("half of %d whole blocks: %v", len(rms), err)
			}
		}
	}
}

func TestSelectRefuses(t *testing.T) {
	good := blas32.General{Rows: 2, Cols: 2, Stride: 2, Data: []float32{1, 2, 3, 4}}
	for _, bad := range []float32{-1, float32(math.NaN()), float32(math.Inf(1))} {
		scores := good
		scores.Data = []float32{1, 2, bad, 4}
		_, _, err := Select(t.Context(), pool.New(1), scores, Selection{Survivors: 2})
		if e := (*ValueError)(nil); !errors.As(err, &e) || e.Row != 1 || e.Col != 0 {
			t.Errorf("score %v: %v", bad, err)
		}
	}
	for _, s := range []Selection{{Survivors: -1}, {Survivors: 5}} {
		if _, _, err := Select(t.Context(), pool.New(1), good, s); !errors.As(err, new(*ShapeError)) {
			t.Errorf("%d survivors of 4: %v", s.Survivors, err)
		}
	}
	for _, s := range []Selection{
		{Scope: "column"},
		{Scope: PerRow, Pattern: Pattern{Kind: Blocks, Rows: 2, Cols: 2}},
		{Pattern: Pattern{Kind: NofM, N: 4, M: 4}},
		{Pattern: Pattern{Kind: 9}},
	} {
		if _, _, err := Select(t.Context(), pool.New(1), good, s); !errors.As(err, new(*PatternError)) {
			t.Errorf("%+v: %v", s, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := Select(ctx, pool.New(1), good, Selection{Survivors: 2}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, _, err := Select(t.Context(), pool.New(1), blas32.General{Rows: 2, Cols: 3, Stride: 3, Data: good.Data}, Selection{Survivors: 2}); err == nil {
		t.Error("a matrix that is too short passed")
	}
}

func TestSelectTheSameForAnyWorkers(t *testing.T) {
	scores := randomScores(rand.New(rand.NewPCG(7, 8)), 300, 700)
	for _, s := range []Selection{
		{Survivors: 100_001},
		{Survivors: 100_001, Scope: PerRow},
		{Survivors: 100_001, Pattern: Pattern{Kind: Blocks, Rows: 4, Cols: 4}},
		{Survivors: 105_000, Pattern: Pattern{Kind: NofM, N: 2, M: 4}},
	} {
		one, _, err := Select(t.Context(), pool.New(1), scores, s)
		if err != nil {
			t.Fatal(err)
		}
		three, _, err := Select(t.Context(), pool.New(3), scores, s)
		if err != nil || !slices.Equal(one.Bits, three.Bits) {
			t.Errorf("%s: masks of one and three workers differ (%v)", s.Pattern, err)
		}
	}
}
