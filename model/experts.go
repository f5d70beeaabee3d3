package model

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/fettle-dev/fettle/internal/vec"
)

// Routing says which experts a token goes to (Shazeer et al. 2017, section 2.1;
// Fedus et al. 2021): the TopK with the largest logits, of equal ones those that
// come first. Their weights are those of the softmax over all experts, divided by
// their sum where Normalize says so; all other weights are 0.
type Routing struct {
	TopK      int  `json:"top_k"`
	Normalize bool `json:"normalize,omitempty"`
}

func (r *Routing) String() string {
	text := fmt.Sprintf("the top %d", r.TopK)
	if r.Normalize {
		text += ", whose weights sum to 1"
	}
	return text
}

// expertInputs returns how many values an operation on experts reads, given how
// many it has; 0 for other operations.
func (o *Op) expertInputs(in [][]int) int {
	switch o.Kind {
	case ScaleRows, Dispatch:
		return 2
	case Combine:
		if len(in) == 0 || len(in[0]) != 1 {
			return 2
		}
		if len(in) == in[0][0]+2 {
			return len(in)
		}
		return in[0][0] + 1
	}
	return 0
}

// expertShape is outputShape for operations on experts.
func (o *Op) expertShape(in [][]int) ([]int, error) {
	switch o.Kind {
	case Route:
		if o.Routing == nil || len(in[0]) != 1 || o.Routing.TopK < 1 || o.Routing.TopK > in[0][0] {
			return nil, fmt.Errorf("route %+v of logits of shape %v", o.Routing, in[0])
		}
		return in[0], nil
	case Dispatch:
		if len(in[1]) != 1 || o.Expert < 0 || o.Expert >= in[1][0] {
			return nil, fmt.Errorf("dispatch to expert %d by weights of shape %v", o.Expert, in[1])
		}
		return in[0], nil
	case ScaleRows:
		if !slices.Equal(in[1], []int{1}) {
			return nil, fmt.Errorf("scale_rows by values of shape %v, want [1]", in[1])
		}
		return in[0], nil
	}
	if len(in[0]) != 1 {
		return nil, fmt.Errorf("combine by weights of shape %v", in[0])
	}
	for _, y := range in[2:] {
		if !slices.Equal(y, in[1]) {
			return nil, fmt.Errorf("combine of shapes %v and %v", in[1], y)
		}
	}
	return in[1], nil
}

// routedRows says of which rows a value is: of all, or of those that the weights
// in value by give to an expert.
type routedRows struct {
	routed     bool
	by, expert int
}

// checkRows fails where an operation mixes values of different rows. rows is by
// value, and gets that of the operation's output.
func (g *Graph) checkRows(o *Op, rows []routedRows) error {
	mixed := errors.New("mixes values of different experts' tokens")
	switch o.Kind {
	case Combine:
		experts := g.Values[o.Inputs[0]].Shape[0]
		for e, v := range o.Inputs[1:] {
			if want := (routedRows{true, o.Inputs[0], e}); e < experts && rows[v] != want || e == experts && rows[v].routed {
				return fmt.Errorf("reads %s in the place of expert %d", g.Values[v].Name, e)
			}
		}
	case Dispatch:
		if rows[o.Inputs[0]].routed || rows[o.Inputs[1]].routed {
			return mixed
		}
		rows[o.Output] = routedRows{true, o.Inputs[1], o.Expert}
		return nil
	default:
		first := rows[o.Inputs[0]]
		for _, v := range o.Inputs {
			if rows[v] != first {
				return mixed
			}
		}
		if first.routed && (o.Kind == Attend || o.Kind == Embed || o.Kind == Route) {
			return fmt.Errorf("%s of an expert's tokens, of which some are missing", o.Kind)
		}
		rows[o.Output] = first
		return nil
	}
	return nil
}

// Gates reports whether layer i decides how much of an expert a token gets: a
// router, or the gate of a shared expert. What reads it stands in its block.
func (g *Graph) Gates(i int) bool {
	return g.Ops[i].IsLayer() && g.gates(i, g.Ops[i].Output)
}

// gates reports whether a router's choice, or a factor of rows, is made of a value
// that operation i writes, be it through a sigmoid.
func (g *Graph) gates(i, value int) bool {
	for r := i + 1; r < len(g.Ops) && g.Ops[r].Block == g.Ops[i].Block; r++ {
		switch o := &g.Ops[r]; {
		case !slices.Contains(o.Inputs, value):
		case o.Kind == Route, o.Kind == ScaleRows && o.Inputs[1] == value:
			return true
		case o.Kind == Sigmoid:
			return g.gates(r, o.Output)
		}
	}
	return false
}

// Experts returns for each operation the Dispatch that gives it its tokens, −1
// where it computes all tokens.
func (g *Graph) Experts() []int {
	by := make([]int, len(g.Values)) // Dispatch + 1
	ops := make([]int, len(g.Ops))
	for i := range g.Ops {
		o := &g.Ops[i]
		ops[i] = -1
		switch {
		case o.Kind == Dispatch:
			by[o.Output] = i + 1
		case o.Kind != Combine && len(o.Inputs) > 0 && g.has(o.Inputs[0]):
			ops[i] = by[o.Inputs[0]] - 1
			by[o.Output] = by[o.Inputs[0]]
		}
	}
	return ops
}

// RowNumbers returns by value how many numbers of memory it takes at most for each
// row of the batch, beside the other values that are there at the same time. What
// experts give sums up to TopK rows for each token, so the first TopK experts'
// outputs count, and the later ones do not.
func (g *Graph) RowNumbers() []int {
	numbers, most := make([]int, len(g.Values)), map[int]int{}
	for v := range numbers {
		numbers[v] = size(g.Values[v].Shape)
	}
	for i := range g.Ops {
		switch o := &g.Ops[i]; o.Kind {
		case Route:
			most[o.Output] = o.Routing.TopK
		case Combine:
			k, ok := most[o.Inputs[0]]
			for e := k; ok && e < g.Values[o.Inputs[0]].Shape[0]; e++ {
				numbers[o.Inputs[1+e]] = 0
			}
		}
	}
	return numbers
}

// routed returns how many rows of the weights, tokens × experts, go to an expert,
// in all and of each sequence (nil where there are none).
func routed(weights *Tensor, expert int) (n int, lengths []int) {
	experts := weights.Shape[1]
	count := func(from, to int) (n int) {
		for r := from; r < to; r++ {
			if weights.Data[r*experts+expert] != 0 {
				n++
			}
		}
		return n
	}
	if weights.Lengths == nil {
		return count(0, weights.Shape[0]), nil
	}
	lengths = make([]int, len(weights.Lengths))
	from := 0
	for s, l := range weights.Lengths {
		lengths[s] = count(from, from+l)
		n += lengths[s]
		from += l
	}
	return n, lengths
}

// route writes the weights of each token's experts, taken in float64 and rounded
// once. The cost of a token is TopK looks at its logits.
func (e *Executor) route(ctx context.Context, o *Op, x, y *Tensor) error {
	experts := x.Shape[1]
	return e.perRow(ctx, x.Shape[0], experts, func(r int) error {
		logits, weights := x.Data[r*experts:][:experts], y.Data[r*experts:][:experts]
		largest := logits[0]
		for _, v := range logits {
			largest = max(largest, v)
		}
		all := 0.0
		for _, v := range logits {
			all += math.Exp(float64(v) - float64(largest))
		}
		chosen := make([]int, 0, o.Routing.TopK)
		sum := 0.0
		for range o.Routing.TopK {
			best := -1
			for i, v := range logits {
				if !slices.Contains(chosen, i) && (best < 0 || v > logits[best]) {
					best = i
				}
			}
			chosen = append(chosen, best)
			sum += math.Exp(float64(logits[best]) - float64(largest))
		}
		if o.Routing.Normalize {
			all = sum
		}
		for _, i := range chosen {
			weights[i] = float32(math.Exp(float64(logits[i])-float64(largest)) / all)
		}
		return nil
	})
}

// dispatch copies the rows of an expert's tokens.
func (e *Executor) dispatch(ctx context.Context, o *Op, x, weights, y *Tensor) error {
	experts := weights.Shape[1]
	rows := make([]int, 0, y.Shape[0])
	for r := range weights.Shape[0] {
		if weights.Data[r*experts+o.Expert] != 0 {
			rows = append(rows, r)
		}
	}
	width := len(x.Data) / x.Shape[0]
	return e.perRow(ctx, len(rows), width, func(r int) error {
		copy(y.Data[r*width:][:width], x.Data[rows[r]*width:])
		return nil
	})
}

// combine adds up what a token's experts give, times their weights, in the order
// of the experts, and then what every token gets.
func (e *Executor) combine(ctx context.Context, in []*Tensor, y *Tensor) error {
	weights := in[0]
	tokens, experts := weights.Shape[0], weights.Shape[1]
	width := len(y.Data) / tokens
	// place holds for the tokens' experts, token after token, their rows.
	first, place := make([]int, tokens+1), []int32{}
	next := make([]int32, experts)
	for r := range tokens {
		for i, w := range weights.Data[r*experts:][:experts] {
			if w != 0 {
				place = append(place, next[i])
				next[i]++
			}
		}
		first[r+1] = len(place)
	}
	return e.perRow(ctx, tokens, width, func(r int) error {
		dst, at := y.Data[r*width:][:width], first[r]
		for i, w := range weights.Data[r*experts:][:experts] {
			if w == 0 {
				continue
			}
			vec.Axpy(w, in[1+i].Data[int(place[at])*width:][:width], dst)
			at++
		}
		if len(in) > experts+1 {
			vec.Add(dst, dst, in[experts+1].Data[r*width:])
		}
		return nil
	})
}

// scaleRows multiplies each row by one number.
func (e *Executor) scaleRows(ctx context.Context, x, factors, y *Tensor) error {
	width := len(x.Data) / x.Shape[0]
	return e.perRow(ctx, x.Shape[0], width, func(r int) error {
		vec.Scale(y.Data[r*width:][:width], x.Data[r*width:], factors.Data[r])
		return nil
	})
}
