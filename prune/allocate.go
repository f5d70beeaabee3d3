package prune

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"

	"gonum.org/v1/gonum/blas/blas32"
)

// LayerInfo is what an allocation knows of a layer beforehand.
type LayerInfo struct {
	Name  string
	Shape []int // of the weight: out×in, or out×(in/groups)×kernel… of a convolution

	// Block joins layers, those of a transformer block, which OWL prunes alike.
	// Empty: the layer is alone.
	Block string
}

// Weights returns how many weights the layer has.
func (l LayerInfo) Weights() int {
	n := 1
	for _, d := range l.Shape {
		n *= d
	}
	return n
}

func (l LayerInfo) convolution() bool { return len(l.Shape) > 2 }

// Share is what an allocation leaves a layer.
type Share struct {
	Layer     string
	Weights   int
	Survivors int

	// Rescued says that the method alone would have left the layer nothing, and
	// that its best weight stays for that.
	Rescued bool
}

// Sparsity returns the share of the layer's weights that go.
func (s Share) Sparsity() float64 { return 1 - float64(s.Survivors)/float64(s.Weights) }

// Read returns layer i's matrix, rows×cols of as many values as the layer has
// weights. Layers are asked for one at a time, in order, some more than once. The
// matrix is not changed, and not used after the next call.
type Read func(ctx context.Context, i int) (blas32.General, error)

// AllocationInput is what some methods look at beside the layers' shapes.
type AllocationInput struct {
	// Layers reads weights for Global and LAMP, and scores, as WandaScores makes
	// them, for OWL. Each layer is read twice.
	Layers Read

	// Curves holds a curve for each layer, for RateDistortion: the squared error of
	// the model's outputs, or of something that adds up over layers, when the layer
	// alone is pruned by 0, 1/d, 2/d … of its weights, 1 being the last of its d+1
	// values. +Inf stands for an amount that is not allowed.
	Curves [][]float64
}

// Allocate shares out what a sparsity leaves of all layers' weights. The survivors'
// sum is exactly the number of weights less Pruned of it, and every layer keeps at
// least one. A sparsity that a method cannot reach is an *ImpossibleError.
//
// Memory is that of one layer and 8 MB, 16 KB more for each layer; LAMP takes a copy
// of the layer, and sorts it, twice. RateDistortion has its own costs.
func Allocate(ctx context.Context, layers []LayerInfo, o AllocationOptions, in AllocationInput) ([]Share, error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	if err := checkLayers(layers); err != nil {
		return nil, err
	}
	switch {
	case o.Method.ReadsLayers() && in.Layers == nil:
		return nil, &AllocationError{"AllocationInput.Layers", "nil", fmt.Sprintf("a reader of layers for %s", o.Method)}
	case o.Method == RateDistortion && in.Curves == nil:
		return nil, &AllocationError{"AllocationInput.Curves", "nil", fmt.Sprintf("a curve for each layer for %s", o.Method)}
	}
	o = o.WithDefaults()
	b := newBudget(layers, o)
	if len(layers) > b.survivors {
		return nil, b.impossible(len(layers), "one weight of each layer would")
	}
	switch o.Method {
	case Uniform:
		return b.uniform()
	case UniformPlus:
		return b.uniformPlus()
	case ERK:
		return b.erk()
	case Global:
		return b.compare(ctx, in.Layers, magnitudeKeys)
	case LAMP:
		return b.compare(ctx, in.Layers, lampKeys)
	case OWL:
		return b.owl(ctx, in.Layers, o.OWL)
	default:
		return b.rateDistortion(ctx, in.Curves, o.Buckets)
	}
}

func checkLayers(layers []LayerInfo) error {
	if len(layers) == 0 {
		return &AllocationError{"layers", "empty", "at least one layer"}
	}
	total := 0
	for _, l := range layers {
		n := 1
		for _, d := range l.Shape {
			if d < 1 || n > (math.MaxInt-total)/d {
				n = 0
				break
			}
			n *= d
		}
		if len(l.Shape) < 2 || n == 0 {
			return &AllocationError{"shape of layer " + l.Name, l.Shape, "two or more sizes of at least 1"}
		}
		total += n
	}
	return nil
}

// budget is how many weights survive, and the bounds of each layer.
type budget struct {
	layers    []LayerInfo
	method    Allocation
	sparsity  float64
	total     int
	survivors int
	least     []int // of each layer's survivors; 1 unless a method says more
	most      []int // the layer's weights
}

func newBudget(layers []LayerInfo, o AllocationOptions) *budget {
	b := &budget{layers: layers, method: o.Method, sparsity: o.Sparsity}
	for _, l := range layers {
		n := l.Weights()
		b.total += n
		b.least, b.most = append(b.least, 1), append(b.most, n)
	}
	b.survivors = b.total - Pruned(b.total, o.Sparsity)
	return b
}

func (b *budget) impossible(needed int, why string) error {
	return &ImpossibleError{b.method, b.sparsity, b.survivors, needed, b.total, why}
}

// uniform takes the layers' weights: one share for all.
func (b *budget) uniform() ([]Share, error) {
	targets := make([]float64, len(b.layers))
	for i, n := range b.most {
		targets[i] = float64(n)
	}
	return b.apportion(targets), nil
}

func (b *budget) uniformPlus() ([]Share, error) {
	last := len(b.layers) - 1
	b.least[last] = max(1, int(math.RoundToEven(0.2*float64(b.most[last]))))
	if first := slices.IndexFunc(b.layers, LayerInfo.convolution); first >= 0 {
		b.least[first] = b.most[first]
	}
	needed := 0
	for _, n := range b.least {
		needed += n
	}
	if needed > b.survivors {
		return nil, b.impossible(needed, "the first convolution, a fifth of the last layer and one weight of each other")
	}
	return b.uniform()
}

// erk takes the sum of a weight's dimensions. The authors' loop, which makes the
// layer dense that the common factor would overfill most and starts again, ends
// where the layers that are not full share one factor: apportion's result.
func (b *budget) erk() ([]Share, error) {
	targets := make([]float64, len(b.layers))
	for i, l := range b.layers {
		for _, d := range l.Shape {
			targets[i] += float64(d)
		}
	}
	return b.apportion(targets), nil
}

// apportion leaves layers survivors in proportion to the targets, each within its
// bounds; their sum is the budget, which the bounds allow. One factor c makes the sum
// of the clamped c·target right. The whole parts are given out first, and what is
// left goes to the largest fractions, at a tie to the earlier layer.
func (b *budget) apportion(targets []float64) []Share {
	clamped := func(c float64, i int) float64 {
		return max(float64(b.least[i]), min(float64(b.most[i]), c*targets[i]))
	}
	low, high := 0.0, 0.0
	for i, t := range targets {
		high = max(high, float64(b.most[i])/t)
	}
	for range 200 { // bisection ends at neighbouring numbers long before
		c := low + (high-low)/2
		sum := 0.0
		for i := range targets {
			sum += clamped(c, i)
		}
		if sum > float64(b.survivors) {
			high = c
		} else {
			low = c
		}
	}
	shares, left := make([]Share, len(targets)), b.survivors
	order, fractions := make([]int, len(targets)), make([]float64, len(targets))
	for i, l := range b.layers {
		whole, fraction := math.Modf(clamped(low, i))
		shares[i] = Share{Layer: l.Name, Weights: b.most[i], Survivors: int(whole)}
		order[i], fractions[i] = i, fraction
		left -= int(whole)
	}
	slices.SortStableFunc(order, func(i, j int) int { return cmp.Compare(fractions[j], fractions[i]) })
	for left > 0 {
		for _, i := range order {
			if left > 0 && shares[i].Survivors < b.most[i] {
				shares[i].Survivors++
				left--
			}
		}
	}
	for i := range shares {
		shares[i].Rescued = shares[i].Survivors == 1 && low*targets[i] <= 0.5
	}
	return shares
}

// keysOf calls visit with keys of all weights of a layer, in any number of pieces and
// any order. Higher keys survive; none exceeds that of the largest float.
type keysOf func(w blas32.General, visit func(keys []uint32)) error

// magnitudeKeys are the keys of |w|.
func magnitudeKeys(w blas32.General, visit func(keys []uint32)) error {
	keys := make([]uint32, w.Cols)
	for r := range w.Rows {
		for c, v := range matrixRow(w, r) {
			keys[c] = magnitudeKey(v)
		}
		visit(keys)
	}
	return nil
}

// compare keeps the weights with the highest keys over all layers, and the best one
// of each layer in any case. Of equal keys those of later layers stay, as Select
// keeps those of higher indices.
//
// It reads all layers twice: first it counts the leading 20 of the keys' 31 bits,
// which tells all but the last bits of the key at which to cut; then it counts, layer
// by layer, what lies above, and the last bits of what leads alike.
func (b *budget) compare(ctx context.Context, read Read, keys keysOf) ([]Share, error) {
	const low = 11
	leads := make([]int, 1<<(31-low))
	best := make([]uint32, len(b.layers))
	err := b.each(ctx, read, func(i int, w blas32.General) error {
		err := keys(w, func(keys []uint32) {
			for _, k := range keys {
				leads[k>>low]++
				best[i] = max(best[i], k)
			}
		})
		leads[best[i]>>low]-- // the best one is out of the race
		return err
	})
	if err != nil {
		return nil, err
	}
	left := b.survivors - len(b.layers) // for others than the best ones
	lead := uint32(len(leads) - 1)
	for ; lead > 0 && left >= leads[lead]; lead-- {
		left -= leads[lead]
	}
	shares := make([]Share, len(b.layers))
	lasts := make([][1 << low]int, len(b.layers))
	err = b.each(ctx, read, func(i int, w blas32.General) error {
		above := 0
		err := keys(w, func(keys []uint32) {
			for _, k := range keys {
				switch l := k >> low; {
				case l > lead:
					above++
				case l == lead:
					lasts[i][k&(1<<low-1)]++
				}
			}
		})
		switch l := best[i] >> low; {
		case l > lead: // counted
		case l == lead:
			lasts[i][best[i]&(1<<low-1)]--
			above++
		default:
			above++
		}
		shares[i] = Share{Layer: b.layers[i].Name, Weights: b.most[i], Survivors: above}
		return err
	})
	if err != nil {
		return nil, err
	}
	last := 1<<low - 1
	for ; last >= 0 && left > 0; last-- {
		for i := len(b.layers) - 1; i >= 0; i-- {
			n := min(left, lasts[i][last])
			shares[i].Survivors += n
			left -= n
		}
	}
	threshold := lead<<low + uint32(last+1) // at and above it keys survive, but for ties
	for i := range shares {
		shares[i].Rescued = best[i] < threshold
	}
	return shares, nil
}

// each reads the layers in order and checks what it gets.
func (b *budget) each(ctx context.Context, read Read, task func(i int, w blas32.General) error) error {
	for i, l := range b.layers {
		if err := ctx.Err(); err != nil {
			return err
		}
		w, err := read(ctx, i)
		if err != nil {
			return err
		}
		if err := checkMatrix("layer "+l.Name, w); err != nil {
			return err
		}
		if w.Rows*w.Cols != b.most[i] {
			return &ShapeError{fmt.Sprintf("layer %s: %d×%d values for the shape %v", l.Name, w.Rows, w.Cols, l.Shape)}
		}
		for r := range w.Rows {
			for c, v := range matrixRow(w, r) {
				if !(math.Abs(float64(v)) <= math.MaxFloat32) {
					return &ValueError{"layer " + l.Name, r, c, float64(v), "a finite number"}
				}
			}
		}
		if err := task(i, w); err != nil {
			return err
		}
	}
	return nil
}
