package layer

import "github.com/fettle-dev/fettle/internal/dtype"

// Format says what the codes of a grid stand for.
type Format string

const (
	// Integer is a uniform grid: scale · (code − zero point).
	Integer Format = ""
	// FP8 is E4M3: scale · value, one scale for the tensor, a channel or a group.
	FP8 Format = "fp8"
	// NVFP4 is E2M1 in groups of 16 inputs. A group's scale is stored in E4M3,
	// and one float32 of the tensor, the global scale, divides them all.
	NVFP4 Format = "nvfp4"
	// MXFP4 is E2M1 in groups of 32 inputs whose scales are powers of two (E8M0):
	// Open Compute's Microscaling formats, version 1.0, §5.3.
	MXFP4 Format = "mxfp4"
)

// formatInfo is what a floating-point format fixes; 0 where it leaves open.
type formatInfo struct {
	float     *dtype.Minifloat
	bits      int
	groupSize int
	scaleType dtype.DType
}

func (f Format) info() formatInfo {
	switch f {
	case FP8:
		return formatInfo{float: dtype.E4M3, bits: 8}
	case NVFP4:
		return formatInfo{dtype.E2M1, 4, 16, dtype.F8E4M3}
	case MXFP4:
		return formatInfo{dtype.E2M1, 4, 32, dtype.F8E8M0}
	default:
		return formatInfo{}
	}
}

// Float returns the values of a floating-point format's codes; nil for Integer,
// and for a format that is not known.
func (f Format) Float() *dtype.Minifloat {
	if f == Integer {
		return nil // without a look at the others: solvers ask for each weight
	}
	return f.info().float
}

// Known reports whether the format is one of the above.
func (f Format) Known() bool { return f == Integer || f.Float() != nil }

// Bits returns the bits of a floating-point format's code; 0 for Integer.
func (f Format) Bits() int { return f.info().bits }

// GroupSize returns the inputs that share a scale; 0 where the format leaves it
// open.
func (f Format) GroupSize() int { return f.info().groupSize }

// ScaleType returns the type that the format stores scales in, or open where it
// leaves that open.
func (f Format) ScaleType(open dtype.DType) dtype.DType {
	if t := f.info().scaleType; t != dtype.Invalid {
		return t
	}
	return open
}
