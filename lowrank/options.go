package lowrank

import (
	"fmt"
	"slices"

	"github.com/fettle-dev/fettle/internal/dtype"
)

// Version grows whenever a factor's bytes change for some input. It is part of
// the keys under which solutions are cached.
const Version = 1

// Method says in which metric the factors are the best of their rank.
type Method string

// The methods.
const (
	EoRA      Method = "eora"
	SVD       Method = "svd"
	ScaledSVD Method = "scaled-svd"
)

// Options say what a layer's low-rank term is. The zero value of a field with a
// default means that default.
type Options struct {
	Method Method // default EoRA

	// Rank is that of the term: of each layer's, where a recipe has several. A
	// layer with fewer inputs or outputs gets as many as the smaller number.
	Rank int

	// Budget, in place of Rank, is how many bytes the factors of all layers may
	// take together. Ranks divides it.
	Budget int64

	FactorType dtype.DType // of the factors, or of their scales: F32, F16 or BF16; default F16
	Bits       int         // of the factors' codes: 8 or 4; 0 stores values

	// Alternations is how often the weight may be compressed again, to make up for
	// what the term leaves; see Alternate.
	Alternations int

	// Seed is that of the random start of large problems' iterations, beside the
	// layer's name.
	Seed uint64
}

// WithDefaults returns the options with defaults in place of zero values: what
// belongs into cache keys and records.
func (o Options) WithDefaults() Options {
	if o.Method == "" {
		o.Method = EoRA
	}
	if o.FactorType == dtype.Invalid {
		o.FactorType = dtype.F16
	}
	return o
}

// WithRank returns the options with a rank in place of the budget: those of a
// layer to which Ranks gave it.
func (o Options) WithRank(rank int) Options {
	o.Rank, o.Budget = rank, 0
	return o
}

// OptionError names an option that is out of its range, or that the other
// options leave without effect.
type OptionError struct {
	Field   string // the field of Options
	Value   any
	Allowed string // what would be accepted
}

func (e *OptionError) Error() string {
	return fmt.Sprintf("lowrank: %s is %v, want %s", e.Field, e.Value, e.Allowed)
}

// Check returns an *OptionError for the first field that is out of its range or
// would have no effect. Zero values that have a default pass.
func (o Options) Check() error {
	o = o.WithDefaults()
	switch {
	case !slices.Contains([]Method{EoRA, SVD, ScaledSVD}, o.Method):
		return &OptionError{"Method", fmt.Sprintf("%q", string(o.Method)), "one of eora, svd, scaled-svd"}
	case o.Budget < 0:
		return &OptionError{"Budget", o.Budget, "a number of bytes, or nothing with a rank"}
	case o.Budget > 0 && o.Rank != 0:
		return &OptionError{"Rank", o.Rank, "nothing with a budget, which gives each layer its rank"}
	case o.Budget == 0 && o.Rank < 1:
		return &OptionError{"Rank", o.Rank, "at least 1, or a budget in its place"}
	case !slices.Contains([]dtype.DType{dtype.F32, dtype.F16, dtype.BF16}, o.FactorType):
		return &OptionError{"FactorType", o.FactorType, "F32, F16 or BF16"}
	case o.Bits != 0 && o.Bits != 4 && o.Bits != 8:
		return &OptionError{"Bits", o.Bits, "4 or 8, or 0 for factors of values"}
	case o.Alternations < 0 || o.Alternations > 100:
		return &OptionError{"Alternations", o.Alternations, "0 to 100"}
	}
	return nil
}

// checkLayer is Check for a single layer's work, which needs a rank.
func (o Options) checkLayer() error {
	if err := o.Check(); err != nil {
		return err
	}
	if o.Budget > 0 {
		return &OptionError{"Budget", o.Budget, "a rank in its place for one layer; Ranks divides a budget among layers"}
	}
	return nil
}

// ComponentBytes returns the bytes that a component takes in both factors of an
// out×in layer: its values, or its codes, each row of a factor packed to whole
// bytes, and two scales.
func (o Options) ComponentBytes(out, in int) int64 {
	o = o.WithDefaults()
	if o.Bits == 0 {
		return int64(out+in) * int64(o.FactorType.Size())
	}
	packed := func(n int) int64 { return (int64(n)*int64(o.Bits) + 7) / 8 }
	return packed(out) + packed(in) + 2*int64(o.FactorType.Size())
}

// GroupsError says that a layer is a grouped convolution, whose weight a single
// low-rank term does not fit.
type GroupsError struct {
	Layer  string
	Groups int
}

func (e *GroupsError) Error() string {
	return fmt.Sprintf("layer %s: a convolution of %d groups has no low-rank term of its own: exclude it from compensation", e.Layer, e.Groups)
}

// CheckGroups returns a *GroupsError for a layer of more than one group.
func CheckGroups(layer string, groups int) error {
	if groups == 1 {
		return nil
	}
	return &GroupsError{Layer: layer, Groups: groups}
}
