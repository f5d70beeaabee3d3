package prune

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
)

// PatternKind is a kind of Pattern.
type PatternKind uint8

// The kinds of patterns.
const (
	// Unstructured prunes any weight.
	Unstructured PatternKind = iota
	// NofM keeps N of each M consecutive inputs of a row. Of a row's last group,
	// where it has only t < M inputs, it keeps ⌈N·t/M⌉.
	NofM
	// Blocks prunes tiles of Rows outputs × Cols inputs, which begin at the first
	// output and input. Those at the far edges may be smaller.
	Blocks
)

// Pattern says which weights can go together. The zero value is unstructured.
type Pattern struct {
	Kind       PatternKind
	N, M       int // of NofM
	Rows, Cols int // of Blocks
}

// maxPattern bounds the numbers in a pattern: no layer has more inputs.
const maxPattern = 1 << 20

// PatternError says what is wrong with a pattern or a scope.
type PatternError struct {
	Pattern string // as written
	Allowed string // what would be accepted
}

func (e *PatternError) Error() string {
	return fmt.Sprintf("prune: pattern %q, want %s", e.Pattern, e.Allowed)
}

// ParsePattern reads a pattern as String writes it: "unstructured", "2:4" (two of
// four consecutive inputs are kept), "block 4x4" (four outputs by four inputs).
func ParsePattern(text string) (Pattern, error) {
	var p Pattern
	switch {
	case text == "unstructured":
	case strings.HasPrefix(text, "block "):
		p.Kind = Blocks
		if _, err := fmt.Sscanf(text, "block %dx%d", &p.Rows, &p.Cols); err != nil {
			p = Pattern{}
		}
	default:
		p.Kind = NofM
		if _, err := fmt.Sscanf(text, "%d:%d", &p.N, &p.M); err != nil {
			p = Pattern{}
		}
	}
	if p.String() != text {
		return Pattern{}, &PatternError{text, `"unstructured", N:M as in "2:4", or "block RxC" as in "block 4x4"`}
	}
	return p, p.Check()
}

// String writes the pattern as recipes do.
func (p Pattern) String() string {
	switch p.Kind {
	case Unstructured:
		return "unstructured"
	case NofM:
		return fmt.Sprintf("%d:%d", p.N, p.M)
	case Blocks:
		return fmt.Sprintf("block %dx%d", p.Rows, p.Cols)
	}
	return fmt.Sprintf("pattern kind %d", p.Kind)
}

// MarshalText writes the pattern as String does.
func (p Pattern) MarshalText() ([]byte, error) { return []byte(p.String()), p.Check() }

// UnmarshalText reads the pattern as ParsePattern does.
func (p *Pattern) UnmarshalText(text []byte) error {
	parsed, err := ParsePattern(string(text))
	if err == nil {
		*p = parsed
	}
	return err
}

// Check returns a *PatternError for a pattern whose numbers are out of range.
func (p Pattern) Check() error {
	switch {
	case p.Kind > Blocks:
		return &PatternError{p.String(), "unstructured, N:M or block"}
	case p.Kind != NofM && (p.N != 0 || p.M != 0), p.Kind != Blocks && (p.Rows != 0 || p.Cols != 0):
		return &PatternError{p.String(), "no numbers of another kind of pattern"}
	case p.Kind == NofM && (p.N < 1 || p.N >= p.M || p.M > maxPattern):
		return &PatternError{p.String(), fmt.Sprintf("1 ≤ N < M ≤ %d, N being the inputs kept of M", maxPattern)}
	case p.Kind == Blocks && (p.Rows < 1 || p.Cols < 1 || p.Rows > maxPattern || p.Cols > maxPattern):
		return &PatternError{p.String(), fmt.Sprintf("blocks of 1 to %d outputs and inputs", maxPattern)}
	case p.Kind == Blocks && p.Rows == 1 && p.Cols == 1:
		return &PatternError{p.String(), "unstructured, which is what blocks of one weight are"}
	}
	return nil
}

// kept returns how many of a group of size inputs an N:M pattern keeps.
func (p Pattern) kept(size int) int { return (p.N*size + p.M - 1) / p.M }

// Survivors returns how many of rows×cols weights the pattern leaves at a sparsity,
// at least one. An N:M pattern brings its own sparsity and does not look at the
// argument. Blocks are as many of all as the sparsity says; where those at the
// edges are smaller, Select's mask has a few weights more or less.
func (p Pattern) Survivors(rows, cols int, sparsity float64) int {
	if p.Kind == NofM {
		return rows * (cols/p.M*p.N + p.kept(cols%p.M))
	}
	return max(1, rows*cols-Pruned(rows*cols, sparsity))
}

// Pruned returns how many of n weights a sparsity prunes: sparsity·n, rounded half
// to even.
func Pruned(n int, sparsity float64) int { return int(math.RoundToEven(sparsity * float64(n))) }

// Scope says over what an unstructured pattern compares scores; default PerLayer.
type Scope string

// The scopes.
const (
	// PerLayer compares all of a layer's weights.
	PerLayer Scope = "layer"
	// PerRow prunes the same number in each row, as Wanda does. Where the layer's
	// number is no multiple of its rows, row r of R prunes ⌊(r+1)P/R⌋ − ⌊rP/R⌋ of
	// the P: counts differ by one at most, and the sum is exact.
	PerRow Scope = "row"
)

// Check returns a *PatternError unless the scope is known and goes with the
// pattern.
func (s Scope) Check(p Pattern) error {
	switch {
	case s != "" && s != PerLayer && s != PerRow:
		return &PatternError{p.String() + " per " + string(s), "scope layer or row"}
	case s == PerRow && p.Kind != Unstructured:
		return &PatternError{p.String() + " per row", "scope layer unless the pattern is unstructured"}
	}
	return nil
}

// Allocation says how much of the whole each layer loses.
type Allocation string

// The allocations.
const (
	// Uniform prunes the same share of each layer.
	Uniform Allocation = "uniform"
	// UniformPlus (Zhu and Gupta, arXiv 1710.01878; Gale et al., 1902.09574) keeps
	// the first convolution dense and at least 20 % of the last layer, and prunes the
	// same share of the others.
	UniformPlus Allocation = "uniform+"
	// ERK (Evci et al., arXiv 1911.11134, §3) leaves each layer survivors in
	// proportion to the sum of its weight's dimensions. Layers that this would give
	// more than they have are dense.
	ERK Allocation = "erk"
	// Global compares |w| over all layers.
	Global Allocation = "global"
	// LAMP (Lee et al., arXiv 2010.07611, §3) compares LAMPScores over all layers.
	LAMP Allocation = "lamp"
	// OWL (Yin et al., arXiv 2310.05175, §3) prunes layers less that have more
	// outliers.
	OWL Allocation = "owl"
	// RateDistortion (Xu et al., arXiv 2308.10438) minimises the sum of the layers'
	// distortions, exactly, by dynamic programming over their curves.
	RateDistortion Allocation = "rate-distortion"
)

var allAllocations = []Allocation{Uniform, UniformPlus, ERK, Global, LAMP, OWL, RateDistortion}

// ReadsLayers reports whether Allocate reads layers: weights for Global and LAMP,
// scores for OWL.
func (a Allocation) ReadsLayers() bool { return a == Global || a == LAMP || a == OWL }

// AllocationOptions say how Allocate shares out what survives.
type AllocationOptions struct {
	Method   Allocation
	Sparsity float64    // of all layers together, in [0, 1)
	OWL      OWLOptions // only for Method OWL
	Buckets  int        // only for Method RateDistortion; see there
}

// OWLOptions tune OWL. The zero value of a field means its default.
type OWLOptions struct {
	Threshold float64 // M: an outlier's score exceeds M times its block's mean; default 5
	Lambda    float64 // a layer's sparsity differs by at most λ from the whole's; default 0.08
}

var defaultOWL = OWLOptions{Threshold: 5, Lambda: 0.08}

// leastBuckets is the coarsest grid of survivors that RateDistortion works on.
const leastBuckets = 10_000

// WithDefaults returns the options with defaults in place of zero values.
func (o AllocationOptions) WithDefaults() AllocationOptions {
	if o.Method == OWL {
		if o.OWL.Threshold == 0 {
			o.OWL.Threshold = defaultOWL.Threshold
		}
		if o.OWL.Lambda == 0 {
			o.OWL.Lambda = defaultOWL.Lambda
		}
	}
	return o
}

// AllocationError names an option of an allocation, or a part of its input, that
// it cannot work with.
type AllocationError struct {
	Field   string // e.g. "Sparsity", "shape of layer conv1"
	Value   any
	Allowed string // what would be accepted
}

func (e *AllocationError) Error() string {
	return fmt.Sprintf("prune: allocation: %s is %v, want %s", e.Field, e.Value, e.Allowed)
}

// Check returns an *AllocationError for the first field that is out of its range or
// would have no effect.
func (o AllocationOptions) Check() error {
	o = o.WithDefaults()
	switch {
	case !slices.Contains(allAllocations, o.Method):
		return &AllocationError{"Method", fmt.Sprintf("%q", string(o.Method)), "one of " + allocationNames()}
	case !(o.Sparsity >= 0 && o.Sparsity < 1):
		return &AllocationError{"Sparsity", o.Sparsity, "a share from 0 up to, not including, 1"}
	case o.Method != OWL && o.OWL != OWLOptions{}:
		return &AllocationError{"OWL", o.OWL, "nothing unless the method is owl"}
	case o.Method == OWL && !(o.OWL.Threshold > 0 && !math.IsInf(o.OWL.Threshold, 0)):
		return &AllocationError{"OWL.Threshold", o.OWL.Threshold, "a positive number"}
	case o.Method == OWL && !(o.OWL.Lambda > 0 && o.OWL.Lambda < 1):
		return &AllocationError{"OWL.Lambda", o.OWL.Lambda, "a share between 0 and 1"}
	case o.Method != RateDistortion && o.Buckets != 0:
		return &AllocationError{"Buckets", o.Buckets, "0 unless the method is rate-distortion"}
	case o.Buckets != 0 && (o.Buckets < leastBuckets || o.Buckets > 1e7):
		return &AllocationError{"Buckets", o.Buckets, fmt.Sprintf("0, or %d to 10000000", leastBuckets)}
	}
	return nil
}

// CheckPattern returns an error where the allocation and the pattern ask for
// different amounts: an N:M pattern prunes 1 − N/M of each layer, so that the method
// must be Uniform, and the sparsity that or 0.
func (o AllocationOptions) CheckPattern(p Pattern) error {
	if err := p.Check(); err != nil || p.Kind != NofM {
		return err
	}
	own := float64(p.M-p.N) / float64(p.M)
	switch {
	case o.Method != Uniform:
		return &AllocationError{"Method", fmt.Sprintf("%q", string(o.Method)), fmt.Sprintf("uniform with pattern %s, which prunes each layer alike", p)}
	case o.Sparsity != 0 && math.Abs(o.Sparsity-own) > 1e-9:
		return &AllocationError{"Sparsity", o.Sparsity, fmt.Sprintf("%v, or 0, with pattern %s", own, p)}
	}
	return nil
}

func allocationNames() string {
	var names []string
	for _, a := range allAllocations {
		names = append(names, string(a))
	}
	return strings.Join(names, ", ")
}

// ErrImpossible is what every error about a budget that cannot be met wraps.
var ErrImpossible = errors.New("the sparsity cannot be reached")

// ImpossibleError says why a budget of survivors cannot be met, and what would do.
type ImpossibleError struct {
	Method    Allocation
	Sparsity  float64
	Survivors int    // what the sparsity leaves
	Needed    int    // the least that the method must keep
	Total     int    // all weights
	Why       string // what Needed consists of
}

func (e *ImpossibleError) Error() string {
	most := math.Floor(1e4*float64(e.Total-e.Needed)/float64(e.Total)) / 1e4
	return fmt.Sprintf("prune: %s: sparsity %v leaves %d of %d weights, %s take %d: ask for at most %v, or take another allocation",
		e.Method, e.Sparsity, e.Survivors, e.Total, e.Why, e.Needed, most)
}

func (e *ImpossibleError) Unwrap() error { return ErrImpossible }
