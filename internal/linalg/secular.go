package linalg

import (
	"context"
	"math"

	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/pool"
)

// secularProblem is the eigenproblem of D + ρzzᵀ for k ascending, well separated
// d, no zero in z, and ρ > 0. Its eigenvalues are the roots λ of
//
//	f(λ) = 1/ρ + Σⱼ zⱼ²/(dⱼ − λ),
//
// one above each d, below the next.
type secularProblem struct {
	d, z []float64
	rho  float64

	values []float64      // out: the eigenvalues, ascending
	column []int          // where element j of an eigenvector is to stand
	rows   blas64.General // out: row i is the eigenvector of value i
}

// secularChunk is the number of roots, or of columns, of one task.
const secularChunk = 32

// solve finds all roots, then the vector ẑ for which they are exact, and from it
// the eigenvectors, which so are orthogonal to rounding (Gu and Eisenstat 1994).
func (s *secularProblem) solve(ctx context.Context, p *pool.Pool) error {
	k := len(s.d)
	chunks := (k + secularChunk - 1) / secularChunk
	inChunks := func(task func(i int)) error {
		return each(ctx, p, chunks, func(t int) error {
			for i := t * secularChunk; i < min((t+1)*secularChunk, k); i++ {
				task(i)
			}
			return nil
		})
	}
	if err := inChunks(func(i int) { s.values[i] = s.root(i, Row(s.rows, i)) }); err != nil {
		return err
	}
	zhat := make([]float64, k)
	if err := each(ctx, p, chunks, func(t int) error {
		from, to := t*secularChunk, min((t+1)*secularChunk, k)
		product, d := zhat[from:to], s.d[from:to]
		for j := range product {
			product[j] = -1
		}
		for i := range k {
			distance, di := Row(s.rows, i)[from:to], s.d[i]
			if from <= i && i < to {
				product[i-from] *= distance[i-from]
				for j := range i - from {
					product[j] *= distance[j] / (d[j] - di)
				}
				for j := i - from + 1; j < to-from; j++ {
					product[j] *= distance[j] / (d[j] - di)
				}
				continue
			}
			for j, v := range distance {
				product[j] *= v / (d[j] - di)
			}
		}
		for j, v := range product {
			product[j] = math.Copysign(math.Sqrt(math.Abs(v)), s.z[from+j])
		}
		return nil
	}); err != nil {
		return err
	}
	return each(ctx, p, chunks, func(t int) error {
		vector := make([]float64, k)
		for i := t * secularChunk; i < min((t+1)*secularChunk, k); i++ {
			r := Row(s.rows, i)
			for j, v := range r {
				vector[j] = zhat[j] / v
			}
			scale(1/norm(vector), vector)
			for j, v := range vector {
				r[s.column[j]] = v
			}
		}
		return nil
	})
}

// root returns eigenvalue i and leaves the distances dⱼ − λᵢ, each to full
// relative precision, in distance.
//
// It counts from the nearer of the poles beside the root. Each step takes the
// root of c + s/(d₁−λ) + S/(d₂−λ), which agrees with f's parts below and above
// the root in value and slope (Li 1993, "the middle way"), and bisects where
// that leaves the interval that the root is known to lie in.
func (s *secularProblem) root(i int, distance []float64) float64 {
	k := len(s.d)
	if k == 1 {
		distance[0] = -s.rho * s.z[0] * s.z[0]
		return s.d[0] - distance[0]
	}
	// Poles up to split belong to the lower part of f, whose outermost pole is
	// d[split]; d[split+1] is that of the upper part.
	split, origin := min(i, k-2), i
	var lo, hi, tau float64
	if i < k-1 {
		gap := s.d[i+1] - s.d[i]
		f := s.at(i, gap/2, split, distance)
		lo, hi = 0, gap/2
		if f.value < 0 {
			origin, lo, hi = i+1, -gap/2, 0
		}
		// All but the two poles beside the root is nearly constant.
		zz1, zz2 := s.z[i]*s.z[i], s.z[i+1]*s.z[i+1]
		c := f.value - zz1/distance[i] - zz2/distance[i+1]
		p1, p2 := s.d[i]-s.d[origin], s.d[i+1]-s.d[origin]
		tau = lesserRoot(c, c*(p1+p2)+zz1+zz2, c*p1*p2+zz1*p2+zz2*p1)
	} else {
		zz := dot(s.z, s.z)
		hi = s.rho * zz * (1 + 8*epsilon)
		tau = s.rho * s.z[i] * s.z[i]
	}
	if !(lo < tau && tau < hi) {
		tau = lo + (hi-lo)/2
	}
	for step := range 100 {
		f := s.at(origin, tau, split, distance)
		if math.Abs(f.value) <= epsilon*f.rounding {
			break
		}
		if f.value < 0 {
			lo = tau
		} else {
			hi = tau
		}
		d1, d2 := distance[split], distance[split+1]
		c := f.value - d1*f.lowerSlope - d2*f.upperSlope
		a, b := (d1+d2)*f.value-d1*d2*(f.lowerSlope+f.upperSlope), d1*d2*f.value
		var eta float64
		if i < k-1 {
			eta = lesserRoot(c, a, b)
		} else {
			eta = greaterRoot(math.Abs(c), a, b)
		}
		if !(eta*f.value < 0) { // only rounding does that: Newton's step
			eta = -f.value / (f.lowerSlope + f.upperSlope)
		}
		last := tau
		tau += eta
		if !(lo < tau && tau < hi) || step > 30 && step%2 == 0 {
			tau = lo + (hi-lo)/2
		}
		if tau == last || tau == lo || tau == hi {
			tau = last
			break
		}
	}
	s.at(origin, tau, split, distance)
	return s.d[origin] + tau
}

// secularValue is f at one point: its slope in two parts, and what its value's
// rounding error may be in units of epsilon.
type secularValue struct{ value, lowerSlope, upperSlope, rounding float64 }

// at evaluates f at d[origin] + tau and leaves the distances of all poles.
func (s *secularProblem) at(origin int, tau float64, split int, distance []float64) secularValue {
	d0 := s.d[origin]
	part := func(from, to int) (sum, slope, partial float64) {
		d, z, out := s.d[from:to], s.z[from:to], distance[from:to]
		for j, v := range d {
			delta := v - d0 - tau
			out[j] = delta
			t := z[j] / delta
			sum += z[j] * t
			slope += t * t
			partial += math.Abs(sum)
		}
		return sum, slope, partial
	}
	lower, lowerSlope, e1 := part(0, split+1)
	upper, upperSlope, e2 := part(split+1, len(s.d))
	return secularValue{
		value:      1/s.rho + lower + upper,
		lowerSlope: lowerSlope,
		upperSlope: upperSlope,
		rounding:   1/s.rho + 8*(math.Abs(lower)+math.Abs(upper)) + e1 + e2 + math.Abs(tau)*(lowerSlope+upperSlope),
	}
}

// lesserRoot returns (a − √(a²−4bc))/2c, the root of cx² − ax + b that lies
// between the poles, without cancellation.
func lesserRoot(c, a, b float64) float64 {
	r := math.Sqrt(math.Abs(a*a - 4*b*c))
	if a > 0 {
		return 2 * b / (a + r)
	}
	return (a - r) / (2 * c)
}

// greaterRoot returns the other one, (a + √(a²−4bc))/2c.
func greaterRoot(c, a, b float64) float64 {
	r := math.Sqrt(math.Abs(a*a - 4*b*c))
	if a >= 0 {
		return (a + r) / (2 * c)
	}
	return 2 * b / (a - r)
}
