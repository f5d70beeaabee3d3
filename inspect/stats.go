package inspect

import (
	"context"
	"math"

	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/loader"
)

// Stats says what a tensor's values are like, read as float32. All but the counts
// are of the finite values alone, and 0 where there is none.
type Stats struct {
	Finite   int64   `json:"finite"` // values
	NaN      int64   `json:"nan"`
	Inf      int64   `json:"inf"` // of either sign
	Min      float64 `json:"min"`
	Max      float64 `json:"max"`
	Mean     float64 `json:"mean"`
	Std      float64 `json:"std"`      // of the population
	Zeros    float64 `json:"zeros"`    // share of the finite values that are 0
	Kurtosis float64 `json:"kurtosis"` // the fourth central moment over std⁴: 3 for normal values, 0 where std is 0
	Peak     float64 `json:"peak"`     // the largest distance from the mean over std, 0 where std is 0
}

// measure fills in the statistics. One worker reads a tensor from its start to its
// end, so that sums do not depend on how many there are.
func (r *Report) measure(ctx context.Context, ckpt *loader.Checkpoint, p *pool.Pool) error {
	stats := map[string]*Stats{} // of tensors with values; tied ones share theirs
	var names []string
	for i := range r.Tensors {
		t := &r.Tensors[i]
		if info, _ := ckpt.Lookup(t.Name); !info.DType.IsFloat() {
			continue
		}
		of := t.Name
		if t.TiedTo != "" {
			of = t.TiedTo
		}
		if stats[of] == nil {
			stats[of] = &Stats{}
			names = append(names, of)
		}
		t.Stats = stats[of]
	}
	return p.For(ctx, len(names), func(i int) error {
		var m moments
		err := ckpt.StreamFloat32(ctx, names[i], func(values []float32) error {
			for len(values) > 0 {
				n := min(len(values), blockSize)
				m.add(values[:n])
				values = values[n:]
			}
			return nil
		})
		*stats[names[i]] = m.stats()
		return err
	})
}

// blockSize is how many values are summed around their own mean at once.
const blockSize = 4096

// moments gathers values in blocks. Central moments are merged by the formulas of
// Pébay, "Formulas for robust, one-pass parallel computation of covariances and
// arbitrary-order statistical moments" (SAND2008-6212), section 3, which lose
// nothing where the mean is far from 0.
type moments struct {
	n, nan, inf, zeros int64
	min, max           float64
	mean, m2, m3, m4   float64
	finite             [blockSize]float64
}

func (m *moments) add(values []float32) {
	finite := m.finite[:0]
	sum := 0.0
	for _, v := range values {
		w := float64(v)
		switch {
		case w-w == 0: // finite
			finite = append(finite, w)
			sum += w
		case w != w:
			m.nan++
		default:
			m.inf++
		}
	}
	if len(finite) == 0 {
		return
	}
	if m.n == 0 {
		m.min, m.max = finite[0], finite[0]
	}
	n := float64(len(finite))
	mean := sum / n
	var m2, m3, m4 float64
	for _, w := range finite {
		m.min, m.max = min(m.min, w), max(m.max, w)
		if w == 0 {
			m.zeros++
		}
		d := w - mean
		d2 := float64(d * d) // the conversions forbid fused operations, which round otherwise
		m2 += d2
		m3 += float64(d2 * d)
		m4 += float64(d2 * d2)
	}
	m.merge(n, mean, m2, m3, m4)
}

// merge adds a block of nb values with their mean and central sums.
func (m *moments) merge(nb, mean, m2, m3, m4 float64) {
	na := float64(m.n)
	n := na + nb
	d := mean - m.mean
	dn := d / n
	cross := float64(float64(d*dn) * float64(na*nb))
	m.m4 += m4 + float64(float64(cross*float64(dn*dn))*(float64(na*na)-float64(na*nb)+float64(nb*nb))) +
		float64(6*float64(dn*dn)*(float64(float64(na*na)*m2)+float64(float64(nb*nb)*m.m2))) +
		float64(4*dn*(float64(na*m3)-float64(nb*m.m3)))
	m.m3 += m3 + float64(float64(cross*dn)*(na-nb)) + float64(3*dn*(float64(na*m2)-float64(nb*m.m2)))
	m.m2 += m2 + cross
	m.mean += float64(dn * nb)
	m.n += int64(nb)
}

func (m *moments) stats() Stats {
	s := Stats{Finite: m.n, NaN: m.nan, Inf: m.inf}
	if m.n == 0 {
		return s
	}
	n := float64(m.n)
	s.Min, s.Max, s.Mean = m.min, m.max, m.mean
	s.Zeros = float64(m.zeros) / n
	if s.Std = math.Sqrt(m.m2 / n); s.Std > 0 {
		s.Kurtosis = n * (m.m4 / m.m2) / m.m2
		s.Peak = max(m.mean-m.min, m.max-m.mean) / s.Std
	}
	return s
}
