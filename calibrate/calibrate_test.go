package calibrate

import (
	"bytes"
	"context"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"gonum.org/v1/gonum/blas/blas32"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/layer"
)

func randoms(rng *rand.Rand, n int) []float32 {
	v := make([]float32, n)
	for i := range v {
		v[i] = float32(rng.NormFloat64())
	}
	return v
}

// take accumulates in chunks of the given number of samples.
func take(t *testing.T, workers, chunk int, r Reading, x, xt []float32) *layer.Moments {
	t.Helper()
	ctx := context.Background()
	a := New(pool.New(workers), r, x == nil)
	for from := 0; from < len(xt); from += chunk * r.Size {
		to := min(from+chunk*r.Size, len(xt))
		var part []float32
		if x != nil {
			part = x[from:to]
		}
		if err := a.Add(ctx, part, xt[from:to]); err != nil {
			t.Fatal(err)
		}
	}
	m, err := a.Moments(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func encode(t *testing.T, m *layer.Moments) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := layer.EncodeMoments(&b, m); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

var convolution = blas.Patches{
	Channels: 4, Height: 9, Width: 7, KernelH: 3, KernelW: 3, StrideH: 2, StrideW: 1,
	PadH: 1, PadW: 1, DilationH: 1, DilationW: 1, Groups: 2,
}

func TestMomentsAgainstTheDefinition(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, r := range []Reading{Rows(6, 6), Rows(5, 15), Convolution(convolution)} {
		samples := 100
		x, xt := randoms(rng, samples*r.Size), randoms(rng, samples*r.Size)
		m := take(t, 2, samples, r, x, xt)
		if want := int64(samples * r.rowsPerSample()); m.Rows != want {
			t.Errorf("%d rows, want %d", m.Rows, want)
		}
		for g := range m.Groups {
			h, cross := make([]float64, m.Inputs*m.Inputs), make([]float64, m.Inputs*m.Inputs)
			sums := [2][]float64{make([]float64, m.Inputs), make([]float64, m.Inputs)}
			eachRow(r, g, x, xt, func(a, at []float32) {
				for i := range at {
					sums[0][i] += float64(a[i])
					sums[1][i] += float64(at[i])
					for j := range at {
						h[i*m.Inputs+j] += float64(at[i]) * float64(at[j])
						cross[i*m.Inputs+j] += float64(at[i]) * float64(a[j])
					}
				}
			})
			near(t, "H", m.H[g].Data, h)
			near(t, "G", m.G[g].Data, cross)
			near(t, "Σx", m.SumX[g*m.Inputs:][:m.Inputs], sums[0])
			near(t, "Σx̃", m.SumXt[g*m.Inputs:][:m.Inputs], sums[1])
		}
	}
}

func eachRow(r Reading, group int, x, xt []float32, f func(a, at []float32)) {
	for s := 0; s < len(x); s += r.Size {
		for p := range r.rowsPerSample() {
			if r.Patches == nil {
				f(x[s+p*r.Inputs:][:r.Inputs], xt[s+p*r.Inputs:][:r.Inputs])
				continue
			}
			a, at := make([]float32, r.Inputs), make([]float32, r.Inputs)
			r.Patches.Gather(a, r.Inputs, x[s:s+r.Size], group, p, 1)
			r.Patches.Gather(at, r.Inputs, xt[s:s+r.Size], group, p, 1)
			f(a, at)
		}
	}
}

func near(t *testing.T, what string, got, want []float64) {
	t.Helper()
	for i := range want {
		if math.Abs(got[i]-want[i]) > 1e-3*(1+math.Abs(want[i])) {
			t.Fatalf("%s: element %d is %v, want %v", what, i, got[i], want[i])
		}
	}
}

func TestSameBytesForAnyWorkersAndBatches(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	r := Convolution(convolution)
	samples := 150 // over two Gram blocks
	x, xt := randoms(rng, samples*r.Size), randoms(rng, samples*r.Size)
	want := encode(t, take(t, 1, samples, r, x, xt))
	for _, c := range []struct{ workers, chunk int }{{2, samples}, {5, 1}, {3, 7}} {
		if !bytes.Equal(want, encode(t, take(t, c.workers, c.chunk, r, x, xt))) {
			t.Errorf("%d workers, batches of %d: other bytes", c.workers, c.chunk)
		}
	}
}

func TestSameStreams(t *testing.T) {
	xt := randoms(rand.New(rand.NewPCG(5, 6)), 40*6)
	m := take(t, 2, 40, Rows(6, 6), nil, xt)
	if m.G != nil || &m.SumX[0] != &m.SumXt[0] {
		t.Error("the same stream was measured twice")
	}
	twice := take(t, 2, 40, Rows(6, 6), xt, xt)
	near(t, "G", twice.G[0].Data, m.Cross(0).Data)
}

func TestEnergy(t *testing.T) {
	// Two samples, two channels, area 2.
	out := []float32{1, 2, 3, 4, 5, 6, 7, 8}
	e, err := Energy(context.Background(), pool.New(2), out, 2, 2, []float32{1, 0})
	if err != nil {
		t.Fatal(err)
	}
	near(t, "energy", e, []float64{0 + 1 + 16 + 25, 9 + 16 + 49 + 64})
}

func TestAddRefusesPartsOfSamples(t *testing.T) {
	a := New(pool.New(1), Rows(4, 4), true)
	if err := a.Add(context.Background(), nil, make([]float32, 6)); err == nil {
		t.Error("six values passed for samples of four")
	}
}

// TestResidualAgainstTheDefinition: a linear layer and a grouped convolution,
// with and without a normalization behind them, over more rows than one block.
func TestResidualAgainstTheDefinition(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 2))
	ctx := context.Background()
	for _, c := range []struct {
		reading Reading
		samples int
		area    int
	}{{Rows(7, 7), 2500, 1}, {Convolution(convolution), 60, convolution.Rows()}} {
		const out = 4
		r := c.reading
		xt := randoms(rng, c.samples*r.Size)
		n := c.samples * out * c.area
		s := Sum{Outputs: out, Y: randoms(rng, n), R: randoms(rng, n), RT: randoms(rng, n), Bias: randoms(rng, out)}
		for _, factor := range [][]float32{nil, {2, 0.5, 0, -1}} {
			s.Factor = factor
			got, err := r.Residual(ctx, pool.New(2), xt, s)
			if err != nil {
				t.Fatal(err)
			}
			groups := r.groups()
			row := make([]float32, r.Inputs)
			for o := range out {
				cross, sum, energy := make([]float64, r.Inputs), 0.0, 0.0
				for i := range c.samples * c.area {
					at := (i/c.area*out+o)*c.area + i%c.area
					d := float64(s.R[at] - s.RT[at])
					if factor != nil && factor[o] != 0 {
						d /= float64(factor[o])
					} else if factor != nil {
						d = 0
					}
					y := float64(s.Y[at]-s.Bias[o]) + d
					energy += y * y
					sum += d
					r.gather(blas32.General{Rows: 1, Cols: r.Inputs, Stride: r.Inputs, Data: row}, 0, xt[i/c.area*r.Size:][:r.Size], o/(out/groups), i%c.area, 1)
					for j, x := range row {
						cross[j] += d * float64(x)
					}
				}
				near := func(what string, got, want float64) {
					if math.Abs(got-want) > 1e-4*(1+math.Abs(want)) {
						t.Errorf("%v, output %d, %s: %v, want %v", r, o, what, got, want)
					}
				}
				near("sum", got.Sum[o], sum)
				near("energy", got.Energy[o], energy)
				m := got.Cross[o/(out/groups)]
				for j, want := range cross {
					near("cross", m.Data[o%(out/groups)*m.Stride+j], want)
				}
			}
		}
		if _, err := r.Residual(ctx, pool.New(1), xt[1:], s); err == nil {
			t.Error("no error for a part of a sample")
		}
	}
}

// TestSampleAgainstTheRows: a sample holds rows of both streams, the same of
// both, no row twice, for any number of workers; a smaller one is the beginning
// of a larger one, and another seed draws others.
func TestSampleAgainstTheRows(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 1))
	ctx := context.Background()
	for _, r := range []Reading{Rows(6, 6), Rows(5, 15), Convolution(convolution)} {
		const samples = 30
		x, xt := randoms(rng, samples*r.Size), randoms(rng, samples*r.Size)
		take := func(workers, n int, seed string) *layer.Sample {
			s, err := r.Sample(ctx, pool.New(workers), x, xt, n, seed)
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		total := samples * r.rowsPerSample()
		all := take(2, 1<<20, "a")
		if all.Rows() != total {
			t.Fatalf("%d rows, want all %d", all.Rows(), total)
		}
		for g := range r.groups() {
			type pair struct{ x, xt float32 } // their first values tell rows apart
			drawn, want := map[pair]int{}, map[pair]int{}
			for i := range total {
				drawn[pair{all.X[g].Data[i*r.Inputs+r.Inputs/2], all.Xt[g].Data[i*r.Inputs+r.Inputs/2]}]++
			}
			eachRow(r, g, x, xt, func(a, at []float32) { want[pair{a[r.Inputs/2], at[r.Inputs/2]}]++ })
			if !maps.Equal(drawn, want) {
				t.Errorf("%v, group %d: other rows than there are", r, g)
			}
			some, other := take(5, 9, "a"), take(1, 9, "b")
			if !slices.Equal(some.X[g].Data, all.X[g].Data[:9*r.Inputs]) || !slices.Equal(some.Xt[g].Data, all.Xt[g].Data[:9*r.Inputs]) {
				t.Errorf("%v, group %d: nine rows are not the first nine of all", r, g)
			}
			if slices.Equal(some.Xt[g].Data, other.Xt[g].Data) {
				t.Errorf("%v: two seeds draw the same", r)
			}
		}
		if s, err := r.Sample(ctx, pool.New(1), nil, xt, 3, "a"); err != nil || s.X != nil || s.Rows() != 3 || s.Original(0).Rows != 3 {
			t.Errorf("the same stream twice: %v, %v", s, err)
		}
		if _, err := r.Sample(ctx, pool.New(1), x[1:], xt, 3, "a"); err == nil {
			t.Error("no error for a part of a sample")
		}
	}
}
