package prune

import (
	"context"
	"fmt"
	"math"

	"gonum.org/v1/gonum/blas/blas32"
	"gonum.org/v1/gonum/blas/blas64"

	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/linalg"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/internal/vec"
	"github.com/fettle-dev/fettle/layer"
)

// PolishOptions are the settings of Polish.
type PolishOptions struct {
	// Tolerance is where a row is done: when the gradient over its survivors is
	// this small beside that over all of its inputs, both scaled to a unit diagonal.
	Tolerance float64

	// Iterations is the most products in float32 that a row takes.
	Iterations int
}

// DefaultPolish ends about a hundredth of a percent above the optimum.
func DefaultPolish() PolishOptions { return PolishOptions{Tolerance: 1e-2, Iterations: 30} }

const (
	polishTasks = 8    // that the rows make, at least
	polishRows  = 512  // rows of a task, at most
	polishInner = 3e-4 // a float32 residual is of use down to this part of its start
)

// Polish overwrites each row ŵ of the weights w (out×in) with the minimizer of
// (ŵ−w̃)A(ŵ−w̃)ᵀ over the weights that survive, by conjugate gradients with the
// diagonal of A as their preconditioner (Golub & Van Loan, 11.5), and returns
// these damped errors. The start is w, whose pruned weights must be 0. No row's
// error grows: a row that rounding made worse keeps its start. Shapes: A in×in,
// the target W̃ out×in, both left as they are.
//
// Directions are multiplied by A in float32; the residual is taken anew in float64
// when they have made it small, so that its accuracy is float64's, and where float32
// leaves a doubt whether the error fell. A row that is done takes part no longer.
// Errors returned are exact to about 10⁻⁶ of what Polish took off.
//
// Cost: out·in² multiply-adds in float32 an iteration, and as many in float64 for
// each residual, of which one is most often enough; memory for an in×in float64
// matrix and two of float32.
func Polish(ctx context.Context, p *pool.Pool, a, target, w blas64.General, mask *layer.Mask, o PolishOptions) ([]float64, error) {
	if p == nil {
		p = pool.New(1)
	}
	s, err := newPolisher(ctx, p, a, target, w, mask, o)
	if err != nil {
		return nil, err
	}
	return s.damped, s.each(ctx, p, func(rows []int) error { return s.run(ctx, rows[0], rows) })
}

type polisher struct {
	scaling
	o            PolishOptions
	a, target, w blas64.General
	mask         *layer.Mask
	scaled       *blas.PackedB // A with a unit diagonal
	most         float64       // a bound of its eigenvalues
	damped       []float64     // the error of each row, once it was run
}

func newPolisher(ctx context.Context, p *pool.Pool, a, target, w blas64.General, mask *layer.Mask, o PolishOptions) (*polisher, error) {
	if mask == nil {
		return nil, &ShapeError{"no mask to keep to"}
	}
	if err := checkSystem(a, w, mask); err != nil {
		return nil, err
	}
	if err := checkSystem(a, target, mask); err != nil {
		return nil, err
	}
	if !(o.Tolerance > 0) || o.Iterations < 0 || target.Rows != w.Rows {
		return nil, &OptionError{"Polish", fmt.Sprintf("%d rows towards %d, to a tolerance of %g in %d iterations", w.Rows, target.Rows, o.Tolerance, o.Iterations), "as many rows, and a positive tolerance"}
	}
	s := &polisher{o: o, a: a, target: target, w: w, mask: mask, scaling: newScaling(a, target), damped: make([]float64, w.Rows)}
	b := linalg.NewGeneral(a.Rows, a.Cols)
	if err := s.matrix(ctx, p, b, a, 0); err != nil {
		return nil, err
	}
	for i := range b.Rows {
		sum := 0.0
		for _, v := range linalg.Row(b, i) {
			sum += math.Abs(v)
		}
		s.most = max(s.most, sum)
	}
	var err error
	s.scaled, err = packed(ctx, p, b)
	return s, err
}

// each calls do with all rows, in tasks.
func (s *polisher) each(ctx context.Context, p *pool.Pool, do func(rows []int) error) error {
	size := min(polishRows, max(16, (s.w.Rows+polishTasks-1)/polishTasks))
	return p.For(ctx, (s.w.Rows+size-1)/size, func(t int) error {
		var rows []int
		for r := t * size; r < min((t+1)*size, s.w.Rows); r++ {
			rows = append(rows, r)
		}
		return do(rows)
	})
}

// gradients writes the rows of W̃ − Ŵ and of (W̃ − Ŵ)A, one below the other.
func (s *polisher) gradients(ctx context.Context, rows []int, diff, grad blas64.General) error {
	diff.Rows, grad.Rows = len(rows), len(rows)
	for i, r := range rows {
		d := linalg.Row(diff, i)
		copy(d, linalg.Row(s.target, r))
		vec.Axpy64(-1, linalg.Row(s.w, r), d)
	}
	return blas.Gemm64(ctx, nil, blas.NoTrans, blas.NoTrans, 1, diff, s.a, 0, grad)
}

// run polishes rows, of which from is the first, and overwrites them.
func (s *polisher) run(ctx context.Context, from int, rows []int) error {
	if len(rows) == 0 {
		return nil
	}
	n, size := s.w.Cols, rows[len(rows)-1]+1-from
	left := make([]int, size)          // products that row from+i may still take
	best := linalg.NewGeneral(size, n) // the weights of row from+i that damped tells of
	for i := range left {
		left[i] = s.o.Iterations
	}
	diff, grad := linalg.NewGeneral(len(rows), n), linalg.NewGeneral(len(rows), n)
	cg := newConjugate(len(rows), n)
	for first := true; len(rows) > 0; first = false {
		if err := s.gradients(ctx, rows, diff, grad); err != nil {
			return err
		}
		going := rows[:0]
		for i, r := range rows {
			e := vec.Dot64(linalg.Row(diff, i), linalg.Row(grad, i))
			if !first && !(e < s.damped[r]) {
				copy(linalg.Row(s.w, r), linalg.Row(best, r-from))
				continue
			}
			copy(linalg.Row(best, r-from), linalg.Row(s.w, r))
			s.damped[r] = e
			slot := len(going)
			inside, all := s.start(cg, slot, linalg.Row(grad, i), r)
			if left[r-from] > 0 && inside > s.o.Tolerance*all {
				cg.begin(slot, left[r-from], inside, max(s.o.Tolerance*all/inside, polishInner))
				going = append(going, r)
			}
		}
		rows = going
		if err := cg.run(ctx, s.scaled, len(rows)); err != nil {
			return err
		}
		going = rows[:0]
		for i, r := range rows {
			w := linalg.Row(s.w, r)
			left[r-from] -= cg.used[i]
			for j, x := range matrixRow(cg.x, i) {
				w[j] += float64(x) * cg.length[i] * s.unit / s.norm[j]
			}
			if (cg.goal[i] > polishInner || left[r-from] == 0) && cg.certain(i, s.most) {
				s.damped[r] = max(s.damped[r]-cg.gain[i]*cg.length[i]*cg.length[i]*s.unit*s.unit, 0)
				continue
			}
			going = append(going, r)
		}
		rows = going
	}
	return nil
}

// start writes the scaled residual over row r's survivors, brought to length 1,
// and these survivors to a slot of cg. It returns the residual's length and that
// of the gradient over all inputs.
func (s *polisher) start(cg *conjugate, slot int, grad []float64, r int) (inside, all float64) {
	survives := matrixRow(cg.survives, slot)
	for j, g := range grad {
		g /= s.norm[j] * s.unit
		grad[j], survives[j] = g, 0
		all += g * g
		if s.mask.At(r, j) {
			survives[j] = 1
			inside += g * g
		}
	}
	inside, all = math.Sqrt(inside), math.Sqrt(all)
	residual := matrixRow(cg.residual, slot)
	for j, g := range grad {
		residual[j] = 0
		if survives[j] != 0 && inside > 0 {
			residual[j] = float32(g / inside)
		}
	}
	return inside, all
}

// conjugate solves x·A = residual over the survivors of some rows by conjugate
// gradients in float32. A slot is a row of each matrix.
type conjugate struct {
	x, residual, direction, product, survives blas32.General

	length []float64 // what the residual was divided by
	goal   []float64 // the length at which a residual is small enough
	most   []int     // products that a slot may take
	used   []int     // those it took
	gain   []float64 // what they took off the error
	square []float64 // of the residual
	owner  []int     // the slot of x that belongs to the others' slot i
}

func newConjugate(rows, n int) *conjugate {
	return &conjugate{
		x: new32(rows, n), residual: new32(rows, n), direction: new32(rows, n), product: new32(rows, n), survives: new32(rows, n),
		length: make([]float64, rows), goal: make([]float64, rows), gain: make([]float64, rows), most: make([]int, rows), used: make([]int, rows),
		square: make([]float64, rows), owner: make([]int, rows),
	}
}

// begin takes in a slot whose residual and survivors are written.
func (c *conjugate) begin(slot, most int, length, goal float64) {
	clear(matrixRow(c.x, slot))
	copy(matrixRow(c.direction, slot), matrixRow(c.residual, slot))
	c.gain[slot] = 0
	c.length[slot], c.goal[slot], c.most[slot], c.used[slot], c.owner[slot] = length, goal, most, 0, slot
	c.square[slot] = vec.DotWide(matrixRow(c.residual, slot), matrixRow(c.residual, slot))
}

// run solves the first slots, with A packed. Slots that are done go, and others
// take their place, so that products shrink; x, length and used stay.
func (c *conjugate) run(ctx context.Context, a *blas.PackedB, slots int) error {
	for slots > 0 {
		direction, product := c.direction, c.product
		direction.Rows, product.Rows = slots, slots
		if err := blas.GemmPacked(ctx, nil, blas.NoTrans, 1, direction, a, 0, product, nil); err != nil {
			return err
		}
		going := 0
		for i := range slots {
			if c.advance(i) {
				if i != going {
					for _, m := range []blas32.General{c.residual, c.direction, c.survives} {
						copy(matrixRow(m, going), matrixRow(m, i))
					}
					c.square[going], c.owner[going] = c.square[i], c.owner[i]
				}
				going++
			}
		}
		slots = going
	}
	return nil
}

// advance takes one step of slot i, whose product with A is made, and reports
// whether there are more to take.
func (c *conjugate) advance(i int) bool {
	owner := c.owner[i]
	direction, product, residual := matrixRow(c.direction, i), matrixRow(c.product, i), matrixRow(c.residual, i)
	c.used[owner]++
	vec.Mul(product, product, matrixRow(c.survives, i))
	curvature := vec.DotWide(direction, product)
	if !(curvature > 0) {
		return false
	}
	step := float32(c.square[i] / curvature)
	c.gain[owner] += c.square[i] / curvature * c.square[i]
	vec.Axpy(step, direction, matrixRow(c.x, owner))
	vec.Axpy(-step, product, residual)
	before := c.square[i]
	c.square[i] = vec.SumSquares(residual)
	if math.Sqrt(c.square[i]) <= c.goal[owner] || c.used[owner] >= c.most[owner] {
		return false
	}
	vec.Scale(direction, direction, float32(c.square[i]/before))
	vec.Add(direction, direction, residual)
	return true
}

// certain reports whether the gain is right to a hundredth, so that the error need
// not be found anew. The true residual differs from that kept up to date by at most
// some roundings of A·x in each step (Greenbaum 1997), A's eigenvalues being at
// most the given number.
func (c *conjugate) certain(slot int, eigenvalue float64) bool {
	return 0x1p-24*eigenvalue*float64(c.used[slot])*vec.SumSquares(matrixRow(c.x, slot)) < 0.01*c.gain[slot]
}
