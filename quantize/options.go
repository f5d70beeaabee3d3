package quantize

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/fettle-dev/fettle/internal/gram"
	"github.com/fettle-dev/fettle/layer"
)

// Version grows whenever a solver's output changes for some input. It is part
// of the keys under which solutions are cached.
const Version = 5

// Method says how codes are found.
type Method string

// The methods.
const (
	Nearest  Method = "nearest"
	GPTQ     Method = "gptq"
	AdaRound Method = "adaround"
	Best     Method = "best"
	GPFQ     Method = "gpfq"
	SPFQ     Method = "spfq"
	Qronos   Method = "qronos"
	HQQ      Method = "hqq"
)

var allMethods = []Method{Best, GPTQ, AdaRound, Qronos, GPFQ, SPFQ, HQQ, Nearest}

// dataFree reports whether the method itself needs no moments.
func (m Method) dataFree() bool { return m == Nearest || m == HQQ }

// Range says how the range of a grid is found.
type Range string

const (
	// MinMax takes the smallest and the largest weight.
	MinMax Range = "minmax"
	// MSE shrinks both ends of MinMax by one of 1, 0.99, … 0.21, that with the
	// least Σ|w − ŵ|^2.4 of nearest rounding, as GPTQ's and BRECQ's code do. It
	// tries every fifth and then the best one's neighbours. Where scales are
	// powers of two, or NVFP4's, it tries the stored scales near MinMax's.
	MSE Range = "mse"
	// AWQ clips weights at one of max|w|·(1 − i/20), i = 0 … 9, that with the
	// least output error of nearest rounding (see clipGrid). It needs moments.
	// GPTQ finds all grids before rounding starts then, also without ActOrder.
	AWQ Range = "awq"
)

// Options say what a layer's weight becomes. The zero value of a field with a
// default means that default.
type Options struct {
	Method      Method
	Bits        int               // 2…8; see StoredBits
	Granularity layer.Granularity // default PerChannel
	GroupSize   int               // inputs per group, for PerGroup

	// Format says what codes stand for; default layer.Integer. A floating-point
	// format brings its Bits, its grids are symmetric, and NVFP4 and MXFP4 bring
	// their groups. Largest weights become the largest value.
	Format layer.Format
	// PowerOfTwo makes the scales of Integer grids powers of two: the smallest
	// that spans a range, or what Range finds at or below it.
	PowerOfTwo bool

	// Symmetric grids have no zero point: scale = 2·max|w|/(2^b−1), so that the
	// largest positive weight lies half a step above the last code.
	// Asymmetric ones span the weights' range, extended to hold 0.
	Symmetric bool
	Range     Range // default MSE; MinMax, where it starts, for HQQ

	// Align solves for W̃ = W(G+λI)ᵀ(H+λI)⁻¹ instead of W, which corrects the
	// errors of the layers before this one. Grids are found on W̃ then.
	// Qronos cannot do without; GPFQ and SPFQ without it correct them by G.
	Align bool

	// Residual, with Align, makes a layer that writes into a residual sum aim at
	// XWᵀ + (R − R̃): it makes up for what the sum's other term has lost too.
	Residual bool

	// Damping is λ relative to the mean of H's diagonal; default 0.01. Nearest,
	// HQQ, GPFQ and SPFQ take it only with Align.
	Damping float64

	// ActOrder makes GPTQ, Qronos, GPFQ and SPFQ round inputs in the order of
	// descending diag(H). With groups, their grids are then found before rounding
	// starts (static groups); GPFQ's and SPFQ's always are.
	ActOrder bool

	// BiasCorrection sets Solution.Bias to the mean error of each output,
	// (Σy* − Ŵ·Σx̃)/rows.
	BiasCorrection bool

	// Centre, with BiasCorrection, finds codes, and measures errors, on inputs and
	// targets less their means, since the bias takes the mean of the error.
	Centre bool

	AdaRound AdaRoundOptions // only for Method AdaRound

	Alphabet Alphabet    // in place of a grid; only for Methods GPFQ and SPFQ
	GPFQ     GPFQOptions // only for Methods GPFQ and SPFQ
}

// AdaRoundOptions tune AdaRound's relaxation. The defaults were chosen on one
// random layer of 144 and one of 576 correlated, ReLU-like inputs, at 4, 3 and
// 2 bits: 1,000 steps at a rate of 0.02 changed the error after descent by less
// than 0.5 % there.
type AdaRoundOptions struct {
	// Sample learns from rows of inputs themselves, layer.Moments.Sample, in place
	// of their moments: the error is then that of what comes out of the activation
	// after the layer (layer.Problem.After), where there is one.
	Sample bool
	Rows   int // rows of the sample that are used, at most; with Sample, default 16384

	Steps        int     // Adam steps, on the full batch or batches of the sample; default 400
	LearningRate float64 // default 0.05

	// Lambda weighs the rounding regularizer Σ 1−|2h−1|^β against the
	// reconstruction error in units of (a row's step)²·mean diag(H): relative,
	// so that it means the same in every layer. Default 0.05.
	Lambda float64

	Warmup    float64 // share of the steps without regularizer, in (0,1); default 0.2
	BetaStart float64 // β after the warm-up; default 20
	BetaEnd   float64 // β at the last step, reached along a cosine; default 2
}

// DefaultSampleRows is AdaRoundOptions.Rows where it is 0 and used: 28 for each of
// a ResNet-20's largest rows of inputs. With 2,048 what is learned fits the sample
// and not the data: KL at 3 bits is 1.7 times as large.
const DefaultSampleRows = 16384

// SampleRows returns how many rows of a sample Solve uses at most; 0 where it
// needs none.
func (o Options) SampleRows() int {
	if o.Method != AdaRound || !o.AdaRound.Sample {
		return 0
	}
	return or(o.AdaRound.Rows, DefaultSampleRows)
}

// DefaultDamping is Options.Damping where it is 0 and used.
const DefaultDamping = gram.DefaultDamping

var defaultAdaRound = AdaRoundOptions{
	Steps: 400, LearningRate: 0.05, Lambda: 0.05, Warmup: 0.2, BetaStart: 20, BetaEnd: 2,
}

// WithDefaults returns the options with defaults in place of zero values: what
// belongs into cache keys and records.
func (o Options) WithDefaults() Options {
	o = o.withPathDefaults()
	if o.Format.Float() != nil {
		o.Bits = or(o.Bits, o.Format.Bits())
		o.Symmetric = true
	}
	if size := o.Format.GroupSize(); size > 0 {
		o.Granularity, o.GroupSize = or(o.Granularity, layer.PerGroup), or(o.GroupSize, size)
	}
	o.Granularity = or(o.Granularity, layer.PerChannel)
	if o.Method == HQQ {
		o.Range = or(o.Range, MinMax)
	}
	if o.Alphabet == "" {
		o.Range = or(o.Range, MSE)
	}
	if o.usesDamping() {
		o.Damping = or(o.Damping, DefaultDamping)
	}
	if o.Method == AdaRound {
		a, d := &o.AdaRound, defaultAdaRound
		if a.Sample {
			a.Rows = or(a.Rows, DefaultSampleRows)
		}
		a.Steps = or(a.Steps, d.Steps)
		a.LearningRate = or(a.LearningRate, d.LearningRate)
		a.Lambda = or(a.Lambda, d.Lambda)
		a.Warmup = or(a.Warmup, d.Warmup)
		a.BetaStart = or(a.BetaStart, d.BetaStart)
		a.BetaEnd = or(a.BetaEnd, d.BetaEnd)
	}
	return o
}

func or[T comparable](v, fallback T) T {
	var zero T
	if v == zero {
		return fallback
	}
	return v
}

func (o Options) usesDamping() bool {
	return o.Align || (!o.Method.dataFree() && !o.followsPath())
}

// gridOnTheWay reports whether groups' steps are found when the pass reaches
// them, and not before it starts.
func (o Options) gridOnTheWay() bool {
	return (o.Method == GPTQ || o.Method == Qronos) && o.Granularity == layer.PerGroup && !o.ActOrder && o.Range != AWQ
}

// NeedsMoments reports whether Solve needs the problem's moments.
func (o Options) NeedsMoments() bool {
	return !o.Method.dataFree() || o.Align || o.BiasCorrection || o.Range == AWQ
}

// OptionError names an option that is out of its range, or that the other
// options leave without effect.
type OptionError struct {
	Field   string // the field of Options
	Value   any
	Allowed string // what would be accepted
}

func (e *OptionError) Error() string {
	return fmt.Sprintf("quantize: %s is %v, want %s", e.Field, e.Value, e.Allowed)
}

// ErrNoMoments says that a method that works on moments was given a problem
// without them.
var ErrNoMoments = errors.New("the method needs calibration moments, the problem has none")

// Check returns an *OptionError for the first field that is out of its range or
// would have no effect. Zero values that have a default pass.
func (o Options) Check() error {
	o = o.WithDefaults()
	a := o.AdaRound
	switch {
	case !slices.Contains(allMethods, o.Method):
		return &OptionError{"Method", quote(o.Method), "one of " + methodNames()}
	case !o.Format.Known():
		return &OptionError{"Format", quote(o.Format), "int, fp8, nvfp4 or mxfp4"}
	case o.Format != layer.Integer && (o.Method == HQQ || o.followsPath()):
		return &OptionError{"Format", quote(o.Format), fmt.Sprintf("int with %s, which works on even steps", o.Method)}
	case o.PowerOfTwo && (o.Method == HQQ || o.Alphabet != ""):
		return &OptionError{"PowerOfTwo", o.PowerOfTwo, "false with hqq and with alphabets, which find scales of their own"}
	case o.Format != layer.Integer && o.Bits != o.Format.Bits():
		return &OptionError{"Bits", o.Bits, fmt.Sprintf("%d, or nothing, with format %s", o.Format.Bits(), o.Format)}
	case o.Format.GroupSize() > 0 && o.Granularity != layer.PerGroup:
		return &OptionError{"Granularity", quote(o.Granularity), fmt.Sprintf("group, or nothing, with format %s", o.Format)}
	case o.Format.GroupSize() > 0 && o.GroupSize != o.Format.GroupSize():
		return &OptionError{"GroupSize", o.GroupSize, fmt.Sprintf("%d, or nothing, with format %s", o.Format.GroupSize(), o.Format)}
	case o.PowerOfTwo && o.Format != layer.Integer:
		return &OptionError{"PowerOfTwo", o.PowerOfTwo, "false unless the format is int"}
	case o.Bits < 2 || o.Bits > 8:
		return &OptionError{"Bits", o.Bits, "2 to 8"}
	case o.Granularity != layer.PerTensor && o.Granularity != layer.PerChannel && o.Granularity != layer.PerGroup:
		return &OptionError{"Granularity", quote(o.Granularity), "tensor, channel or group"}
	case o.Granularity == layer.PerGroup && o.GroupSize < 1:
		return &OptionError{"GroupSize", o.GroupSize, "at least 1 with granularity group"}
	case o.Granularity != layer.PerGroup && o.GroupSize != 0:
		return &OptionError{"GroupSize", o.GroupSize, "0 unless the granularity is group"}
	case o.Range != MinMax && o.Range != MSE && o.Range != AWQ && o.Alphabet == "":
		return &OptionError{"Range", quote(o.Range), "minmax, mse or awq"}
	case o.Method == HQQ && o.Range != MinMax:
		return &OptionError{"Range", quote(o.Range), "minmax with hqq, which finds ranges itself from there"}
	case o.Method == HQQ && o.Granularity == layer.PerTensor:
		return &OptionError{"Granularity", quote(o.Granularity), "channel or group with hqq"}
	case o.Centre && (!o.BiasCorrection || o.Method.dataFree() && !o.Align):
		return &OptionError{"Centre", o.Centre, "false without bias correction, and for methods that take no moments"}
	case o.Residual && !o.Align:
		return &OptionError{"Residual", o.Residual, "false without align"}
	case !o.usesDamping() && o.Damping != 0:
		return &OptionError{"Damping", o.Damping, fmt.Sprintf("0 for %s without align, which does not use it", o.Method)}
	case o.usesDamping() && !(o.Damping > 0 && o.Damping <= 1e6):
		return &OptionError{"Damping", o.Damping, "a positive number up to 1e6, relative to the mean of H's diagonal"}
	case o.ActOrder && (o.Method.dataFree() || o.Method == AdaRound || o.Method == Best):
		return &OptionError{"ActOrder", o.ActOrder, "false unless the method is gptq, qronos, gpfq or spfq"}
	case o.Method != AdaRound && a != AdaRoundOptions{}:
		return &OptionError{"AdaRound", a, "nothing unless the method is adaround"}
	case o.Method != AdaRound:
		return o.checkPath()
	case o.Alphabet != "" || o.GPFQ != GPFQOptions{}:
		return o.checkPath()
	case !a.Sample && a.Rows != 0:
		return &OptionError{"AdaRound.Rows", a.Rows, "nothing without sample: true"}
	case a.Sample && (a.Rows < 1 || a.Rows > 1<<16):
		return &OptionError{"AdaRound.Rows", a.Rows, "1 to 65536"}
	case a.Sample && o.Residual:
		return &OptionError{"Residual", o.Residual, "false with a sample, which has no rows of the residual sum"}
	case a.Steps < 1 || a.Steps > 1e6:
		return &OptionError{"AdaRound.Steps", a.Steps, "1 to 1000000"}
	case !(a.LearningRate > 0 && a.LearningRate <= 10):
		return &OptionError{"AdaRound.LearningRate", a.LearningRate, "a positive number up to 10"}
	case !(a.Lambda > 0 && a.Lambda <= 1e6):
		return &OptionError{"AdaRound.Lambda", a.Lambda, "a positive number up to 1e6"}
	case !(a.Warmup > 0 && a.Warmup < 1):
		return &OptionError{"AdaRound.Warmup", a.Warmup, "a share between 0 and 1"}
	case !(a.BetaEnd > 1 && !math.IsInf(a.BetaEnd, 0)):
		return &OptionError{"AdaRound.BetaEnd", a.BetaEnd, "more than 1"}
	case !(a.BetaStart >= a.BetaEnd && !math.IsInf(a.BetaStart, 0)):
		return &OptionError{"AdaRound.BetaStart", a.BetaStart, "at least BetaEnd"}
	}
	return nil
}

func methodNames() string {
	var names []string
	for _, m := range allMethods {
		names = append(names, string(m))
	}
	return strings.Join(names, ", ")
}

func quote[T ~string](s T) string { return fmt.Sprintf("%q", string(s)) }
