package quantize

import (
	"context"
	"math"
	"math/rand/v2"
	"slices"

	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/layer"
)

// Alphabet is a set of levels with one step δ for a whole layer, in place of a
// grid whose range is searched. GPFQ's and SPFQ's authors work on them.
//
// Over the layer's rows rad is the mean of a quantile of a row's |w|, and the
// last level is C·rad, as in the code of Zhang, Zhou and Saab (arXiv 2201.11113).
type Alphabet string

const (
	// AlphabetGPFQ has the 2^b+1 levels 0, ±δ … ±2^(b−1)·δ for b Bits. Codes are
	// stored in b+1 bits.
	AlphabetGPFQ Alphabet = "gpfq"
	// AlphabetTernary has the levels 0 and ±δ, stored in 2 bits.
	AlphabetTernary Alphabet = "ternary"
	// AlphabetBinary has the levels ±δ, stored in 2 bits.
	AlphabetBinary Alphabet = "binary"
)

// Threshold says how sparse GPFQ (arXiv 2201.11113) makes small values 0. Its
// threshold λ is GPFQOptions.Lambda·rad: relative, so that it means the same in
// every layer.
type Threshold string

const (
	// SoftThreshold takes λ from each |v| before it is rounded.
	SoftThreshold Threshold = "soft"
	// HardThreshold makes |v| ≤ λ zero and rounds other values to ±λ, ±(λ+δ) …
	// ±(λ+Mδ), the last being C·rad. Codes stand for multiples of one step, so λ
	// is moved to the nearest multiple of δ, and codes take the bits that λ/δ+M
	// needs.
	HardThreshold Threshold = "hard"
)

// GPFQOptions tune GPFQ and SPFQ. All but Seed belong to an Alphabet.
type GPFQOptions struct {
	C        float64 // the last level in units of rad; default 1.16
	Quantile float64 // of each row's |w|, in (0,1]; between two weights it is linear; default 1, the largest

	Threshold Threshold // only for Method GPFQ and an alphabet that holds 0
	Lambda    float64   // λ in units of rad; more than 0 and less than C

	Seed uint64 // of SPFQ's draws, beside the layer's name and the row
}

var defaultGPFQ = GPFQOptions{C: 1.16, Quantile: 1}

// withPathDefaults are the defaults of methods that follow the path of the
// prefix's error. An alphabet's grid is symmetric and one for the tensor, and
// its range is not searched.
func (o Options) withPathDefaults() Options {
	if o.Alphabet == "" {
		return o
	}
	o.Granularity, o.Symmetric = or(o.Granularity, layer.PerTensor), true
	if o.Alphabet == AlphabetTernary || o.Alphabet == AlphabetBinary {
		o.Bits = or(o.Bits, 2)
	}
	o.GPFQ.C = or(o.GPFQ.C, defaultGPFQ.C)
	o.GPFQ.Quantile = or(o.GPFQ.Quantile, defaultGPFQ.Quantile)
	return o
}

// followsPath reports whether the method chooses codes by the error of the
// inputs up to each one.
func (o Options) followsPath() bool { return o.Method == GPFQ || o.Method == SPFQ }

// checkPath is Check for what concerns GPFQ, SPFQ and Qronos. The options have
// their defaults.
func (o Options) checkPath() error {
	g, bare := o.GPFQ, o.GPFQ
	bare.Seed = 0
	switch {
	case o.Method == Qronos && !o.Align:
		return &OptionError{"Align", o.Align, "true for qronos, which corrects the layers before by itself; without that it is gptq"}
	case o.Alphabet != "" && !o.followsPath():
		return &OptionError{"Alphabet", quote(o.Alphabet), "nothing unless the method is gpfq or spfq"}
	case g != GPFQOptions{} && !o.followsPath():
		return &OptionError{"GPFQ", g, "nothing unless the method is gpfq or spfq"}
	case g.Seed != 0 && o.Method != SPFQ:
		return &OptionError{"GPFQ.Seed", g.Seed, "0 unless the method is spfq, which alone draws random numbers"}
	case o.Alphabet == "" && bare != GPFQOptions{}:
		return &OptionError{"GPFQ", bare, "nothing but Seed without an alphabet"}
	case o.Alphabet == "":
		return nil
	case o.Alphabet != AlphabetGPFQ && o.Alphabet != AlphabetTernary && o.Alphabet != AlphabetBinary:
		return &OptionError{"Alphabet", quote(o.Alphabet), "gpfq, ternary or binary"}
	case o.Alphabet != AlphabetGPFQ && o.Bits != 2:
		return &OptionError{"Bits", o.Bits, "2 with alphabet ternary or binary, which are stored in 2 bits"}
	case o.Granularity != layer.PerTensor:
		return &OptionError{"Granularity", quote(o.Granularity), "tensor with an alphabet, which has one step for a layer"}
	case o.Range != "":
		return &OptionError{"Range", quote(o.Range), "nothing with an alphabet, whose range is C·rad"}
	case !(g.C > 0 && g.C <= 1e6):
		return &OptionError{"GPFQ.C", g.C, "a positive number up to 1e6"}
	case !(g.Quantile > 0 && g.Quantile <= 1):
		return &OptionError{"GPFQ.Quantile", g.Quantile, "more than 0, at most 1"}
	}
	return o.checkThreshold()
}

func (o Options) checkThreshold() error {
	g := o.GPFQ
	switch {
	case g.Threshold == "" && g.Lambda != 0:
		return &OptionError{"GPFQ.Lambda", g.Lambda, "0 without a threshold"}
	case g.Threshold == "":
	case g.Threshold != SoftThreshold && g.Threshold != HardThreshold:
		return &OptionError{"GPFQ.Threshold", quote(g.Threshold), "soft or hard"}
	case o.Method != GPFQ || o.Alphabet == AlphabetBinary:
		return &OptionError{"GPFQ.Threshold", quote(g.Threshold), "nothing unless the method is gpfq and the alphabet holds 0"}
	case !(g.Lambda > 0 && g.Lambda < g.C):
		return &OptionError{"GPFQ.Lambda", g.Lambda, "more than 0 and less than C"}
	}
	switch {
	case o.StoredBits() <= 8:
		return nil
	case g.Threshold == HardThreshold:
		return &OptionError{"GPFQ.Lambda", g.Lambda, "less: the levels between λ and C·rad take more than 8 bits"}
	default:
		return &OptionError{"Bits", o.Bits, "2 to 7 with alphabet gpfq, which is stored in one bit more"}
	}
}

// StoredBits is how many bits a code of the solution takes: Bits, or what an
// alphabet's levels need.
func (o Options) StoredBits() int {
	if o.Alphabet == "" {
		return o.Bits
	}
	r := o.withPathDefaults().rounding()
	bits := 2
	for _, hi := layer.CodeRange(bits); hi < r.hi && bits < 32; _, hi = layer.CodeRange(bits) {
		bits++
	}
	return bits
}

// rounding chooses the code of a value.
type rounding struct {
	lo, hi     int // the codes that there are
	alphabet   Alphabet
	stochastic bool
	soft       float64 // soft threshold in steps; 0 for none
	hard       int     // hard threshold in steps; 0 for none
}

// rounding returns how the options round. Bits are checked, or at least small.
func (o Options) rounding() rounding {
	r := rounding{alphabet: o.Alphabet, stochastic: o.Method == SPFQ}
	if o.Alphabet == "" {
		r.lo, r.hi = layer.CodeRange(o.Bits)
		return r
	}
	m := 1
	if o.Alphabet == AlphabetGPFQ {
		m = 1 << min(max(o.Bits-1, 0), 20)
	}
	g := o.GPFQ
	switch g.Threshold {
	case SoftThreshold:
		r.soft = g.Lambda / g.C * float64(m)
	case HardThreshold: // λ = kδ and λ + Mδ = C·rad
		k := math.Round(g.Lambda * float64(m) / (g.C - g.Lambda))
		r.hard = int(min(max(k, 0), 1<<20))
	}
	r.lo, r.hi = -m-r.hard, m+r.hard
	return r
}

// code returns the code of v. Only a stochastic rounding draws, once.
func (r *rounding) code(v float64, s step, draw *rand.PCG) int {
	if r.alphabet == "" && !r.stochastic {
		return s.code(v, r.lo, r.hi)
	}
	x := v / float64(s.scale)
	if r.stochastic {
		if r.alphabet == AlphabetBinary {
			return 2*between(floorOrCeil((x+1)/2, draw), 0, 1) - 1
		}
		return between(floorOrCeil(x, draw)+float64(s.zero), r.lo, r.hi)
	}
	if r.alphabet == AlphabetBinary {
		return sign(x)
	}
	size, code := math.Abs(x)-r.soft, 0
	if r.hard == 0 || size > float64(r.hard) {
		code = between(math.Round(size), r.hard, r.hi)
	}
	if x < 0 {
		return -code
	}
	return code
}

func between(x float64, lo, hi int) int { return int(min(max(x, float64(lo)), float64(hi))) }

// floorOrCeil rounds without bias: up as often as x lies above its floor.
func floorOrCeil(x float64, draw *rand.PCG) float64 {
	f := math.Floor(x)
	if float64(draw.Uint64()>>11)*0x1p-53 < x-f {
		f++
	}
	return f
}

// reach is the largest distance, in steps, between a value within the levels'
// range and the level that it becomes.
func (r *rounding) reach() float64 {
	reach := 0.5
	if r.stochastic {
		reach = 1
	}
	if r.alphabet == AlphabetBinary {
		reach *= 2
	}
	return max(reach+r.soft, float64(r.hard))
}

// idle is the code of an input that is always 0: of weight 0, or where there is
// none, of the nearest level.
func (r *rounding) idle(w float64, s step) int {
	if r.alphabet == AlphabetBinary {
		return sign(w)
	}
	return s.zero
}

func sign(x float64) int {
	if x < 0 {
		return -1
	}
	return 1
}

// alphabetGrid returns the grid of an alphabet for a weight or target.
func (s *solver) alphabetGrid(ctx context.Context, w blas64.General) (layer.Grid, error) {
	grid := s.grid.emptyGrid(w.Rows, w.Cols, s.o.Granularity, 0)
	rad, err := radius(ctx, s.Pool, w, s.o.GPFQ.Quantile)
	if err != nil {
		return grid, err
	}
	if rad > 0 || s.o.Alphabet == AlphabetBinary { // binary has no 0 for weights of 0
		r := s.o.rounding()
		setStep(&grid, 0, step{scale: s.grid.storable(s.o.GPFQ.C * rad / float64(r.hi))})
	}
	return grid, nil
}

// radius returns the mean over rows of the quantile p of a row's |w|.
func radius(ctx context.Context, pl *pool.Pool, w blas64.General, p float64) (float64, error) {
	quantiles := make([]float64, w.Rows)
	err := pl.For(ctx, w.Rows, func(r int) error {
		quantiles[r] = absQuantile(linalg.Row(w, r), p)
		return nil
	})
	rad := 0.0
	for _, q := range quantiles {
		rad += q / float64(w.Rows)
	}
	return rad, err
}

// absQuantile returns the p-quantile of |w|, linear between two of them.
func absQuantile(w []float64, p float64) float64 {
	if p == 1 {
		return max(slices.Max(w), -slices.Min(w))
	}
	sizes := make([]float64, len(w))
	for i, v := range w {
		sizes[i] = math.Abs(v)
	}
	slices.Sort(sizes)
	at := p * float64(len(w)-1)
	low := int(at)
	high := min(low+1, len(w)-1)
	return sizes[low] + (at-float64(low))*(sizes[high]-sizes[low])
}
