package report

import (
	"math"
	"strconv"
)

// axis is a scale from lo to hi, linear or logarithmic.
type axis struct {
	lo, hi     float64
	log        bool
	step       float64 // between ticks of a linear scale
	start, end px      // the places of lo and hi
}

// Numbers beyond these lie on the edges: a scale that held them would overflow.
const smallestShown, largestShown = 1e-300, 1e300

// newAxis returns a scale that holds the values and ends at round numbers. It is
// logarithmic where the largest is many times the smallest above 0.
func newAxis(values []float64, start, end px) axis {
	const wide = 8
	a := axis{lo: math.Inf(1), hi: math.Inf(-1), start: start, end: end}
	positive := math.Inf(1)
	for _, v := range values {
		v = max(-largestShown, min(v, largestShown))
		a.lo, a.hi = min(a.lo, v), max(a.hi, v)
		if v > 0 {
			positive = min(positive, max(v, smallestShown))
		}
	}
	switch {
	case a.lo > a.hi || a.lo == 0 && a.hi == 0:
		a.lo, a.hi, a.step = 0, 1, 0.2
	case a.lo >= 0 && a.hi > wide*positive:
		a.log = true
		a.lo, a.hi = roundDown(positive), roundUp(a.hi)
	default:
		a.widen(0.02)
		a.step = a.stepOf(4)
		a.lo, a.hi = a.step*math.Floor(a.lo/a.step), a.step*math.Ceil(a.hi/a.step)
	}
	return a
}

// widen adds to a range of hardly any extent the given share of its value to both
// sides: labels of ticks within it would be long.
func (a *axis) widen(by float64) {
	if size := max(math.Abs(a.lo), math.Abs(a.hi)); a.hi-a.lo <= 1e-4*size {
		a.lo, a.hi = a.lo-by*size, a.hi+by*size
	}
}

// stepOf returns a round number that goes into the range n times at most.
func (a axis) stepOf(n float64) float64 {
	return roundUp(max(a.hi-a.lo, smallestShown) / n)
}

// at returns the place of a value. What has none on a logarithmic scale, such as 0,
// lies at the scale's start.
func (a axis) at(v float64) px {
	t := 0.0
	switch {
	case !a.log:
		t = (v - a.lo) / (a.hi - a.lo)
	case v > 0:
		t = math.Log(v/a.lo) / math.Log(a.hi/a.lo)
	}
	return a.start + (a.end-a.start)*px(max(0, min(t, 1)))
}

// axisTick is a number of a scale.
type axisTick struct {
	At    px
	Label string
}

// ticks returns round numbers of the scale.
func (a axis) ticks() []axisTick {
	if a.log {
		return a.logTicks()
	}
	return a.linearTicks(func(v float64) string { return tickLabel(v, a.step) })
}

func (a axis) linearTicks(label func(float64) string) []axisTick {
	const most = 20
	var ticks []axisTick
	first := math.Ceil(a.lo/a.step - 1e-9)
	for i := range most {
		v := (first + float64(i)) * a.step
		if v > a.hi+1e-9*a.step {
			break
		}
		ticks = append(ticks, axisTick{a.at(v), label(v)})
	}
	return ticks
}

// logTicks returns the powers of ten, fewer where they would crowd, with 2 and 5 times
// them where there is room.
func (a axis) logTicks() []axisTick {
	lo, hi := int(math.Floor(math.Log10(a.lo)+1e-9)), int(math.Ceil(math.Log10(a.hi)-1e-9))
	every := (hi-lo)/8 + 1
	factors := []float64{1, 2, 5}
	if hi-lo > 3 {
		factors = factors[:1]
	}
	var ticks []axisTick
	for e := lo; e <= hi; e += every {
		for _, m := range factors {
			v := m * math.Pow10(e)
			if v < a.lo*(1-1e-9) || v > a.hi*(1+1e-9) {
				continue
			}
			label := powerLabel(e)
			if e >= -4 && e <= 5 {
				label = fixed(v, max(0, -e))
			} else if m > 1 {
				label = fixed(m, 0) + "·" + label
			}
			ticks = append(ticks, axisTick{a.at(v), label})
		}
	}
	return ticks
}

// tickLabel writes a multiple of a step with as many digits as the step has.
func tickLabel(v, step float64) string {
	exponent := int(math.Floor(math.Log10(step) + 1e-9))
	if exponent >= -6 && math.Abs(v) < 1e6 {
		return fixed(v, max(0, -exponent))
	}
	if math.Abs(v) < step/2 {
		return "0"
	}
	return rounded(v, max(1, int(math.Floor(math.Log10(math.Abs(v))+1e-9))-exponent+1))
}

// newBytesAxis returns a scale of bytes with some room at both ends.
func newBytesAxis(bytes []int64, start, end px) (axis, []axisTick) {
	a := axis{lo: math.Inf(1), hi: math.Inf(-1), start: start, end: end}
	for _, b := range bytes {
		a.lo, a.hi = min(a.lo, float64(b)), max(a.hi, float64(b))
	}
	if a.lo > a.hi {
		a.lo, a.hi = 0, 1
	}
	a.widen(0.01)
	room := max(1, 0.04*(a.hi-a.lo))
	a.lo, a.hi = a.lo-room, a.hi+room
	unit, name := 1.0, " B"
	for _, u := range []struct {
		size float64
		name string
	}{{1e3, " KB"}, {1e6, " MB"}, {1e9, " GB"}} {
		if a.hi >= u.size {
			unit, name = u.size, u.name
		}
	}
	a.step = max(1, a.stepOf(4))
	return a, a.linearTicks(func(v float64) string { return tickLabel(v/unit, a.step/unit) + name })
}

// newCountAxis returns a scale of whole numbers from 0.
func newCountAxis(most int, start, end px) (axis, []axisTick) {
	a := axis{hi: float64(max(1, most)), start: start, end: end}
	a.step = max(1, a.stepOf(5))
	return a, a.linearTicks(func(v float64) string { return strconv.Itoa(int(v)) })
}

// roundUp returns the least of 1, 2 and 5 times a power of ten that x > 0 does not
// exceed.
func roundUp(x float64) float64 {
	power := math.Pow10(int(math.Floor(math.Log10(x))))
	for _, m := range []float64{1, 2, 5} {
		if x <= m*power*(1+1e-9) {
			return m * power
		}
	}
	return 10 * power
}

// roundDown returns the greatest such number that does not exceed x > 0.
func roundDown(x float64) float64 {
	power := math.Pow10(int(math.Floor(math.Log10(x))))
	for _, m := range []float64{5, 2} {
		if x >= m*power*(1-1e-9) {
			return m * power
		}
	}
	return power
}
