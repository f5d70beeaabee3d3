package fitness

import (
	"context"

	"gonum.org/v1/gonum/blas/blas32"

	"github.com/fettle-dev/fettle/search"
)

// answers are the original's, by item: a row of logits, or a document's hidden
// states. A document that is cut has an answer of its own, for the rows of an
// attention that sees fewer tokens may be rounded in another way.
type answers struct {
	rows map[int][]float32 // whole items, by index
	cut  []float32         // the last item's of this batch, where it is cut
}

func (a *answers) of(i item) []float32 {
	if i.whole {
		return a.rows[i.index]
	}
	return a.cut
}

// answer runs the original on the items that it has not seen yet.
func (e *Evaluator) answer(ctx context.Context, items []item) error {
	var todo []item
	for _, one := range items {
		if e.answers.of(one) == nil {
			todo = append(todo, one)
		}
	}
	original := make(search.Candidate, len(e.model.Genes))
	for i := range original {
		original[i] = Original
	}
	for _, part := range e.parts(todo, 1) {
		if err := e.answerPart(ctx, original, todo[part[0]:part[1]]); err != nil {
			return err
		}
	}
	return nil
}

func (e *Evaluator) answerPart(ctx context.Context, original search.Candidate, items []item) error {
	t, err := e.grow(ctx, []search.Candidate{original}, []int{0}, items, false)
	defer t.free()
	if err != nil {
		return err
	}
	all := t.answerOf(t.nodes[0])
	at := 0
	for _, one := range items {
		rows, err := e.space.Floats(one.rows * all.Cols)
		if err != nil {
			return err
		}
		copy(rows, all.Data[at:])
		at += len(rows)
		if one.whole {
			e.answers.rows[one.index] = rows
		} else {
			e.answers.cut = rows
		}
	}
	return nil
}

// forgetCut frees the answer that serves one batch only.
func (e *Evaluator) forgetCut() {
	e.space.Free(e.answers.cut)
	e.answers.cut = nil
}

// original returns the original's answers to some rows of a tree, in a buffer if
// they do not lie in one piece.
func (t *tree) original(rows []countedRow) blas32.General {
	var m blas32.General
	for k, r := range rows {
		one := t.items[r.item]
		all := t.e.answers.of(one)
		if k == 0 {
			m.Rows, m.Cols = len(rows), len(all)/one.rows
			m.Stride, m.Data = m.Cols, make([]float32, len(rows)*m.Cols)
		}
		copy(row(m, k), all[r.at*m.Cols:])
	}
	return m
}

// pick copies some rows of m.
func pick(m blas32.General, rows []countedRow) blas32.General {
	p := blas32.General{Rows: len(rows), Cols: m.Cols, Stride: m.Cols, Data: make([]float32, len(rows)*m.Cols)}
	for k, r := range rows {
		copy(row(p, k), row(m, r.row))
	}
	return p
}
