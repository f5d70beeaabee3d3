package prune

import (
	"cmp"
	"slices"
)

// UnitChoice is one number of units that a site may keep.
type UnitChoice struct {
	Keep int
	Cost int64   // what the site then weighs, in bytes or parameters
	Loss float64 // what that does to the model, in units that sites share
}

// ChooseCounts returns for each site the index of one of its choices, so that
// the sum of losses is the least of all within a total cost; of equal losses the
// cheapest. It is exact: sums of cost and loss that another one beats in both are
// dropped site by site, and nothing is rounded to a grid. Time and memory grow
// with the number of different total costs, which is small where units cost
// the same everywhere.
//
// It fails with a *UnitInputError where a site has no choice, a cost is negative,
// a loss is not a number, or even the cheapest choices cost more than the budget.
func ChooseCounts(sites [][]UnitChoice, budget int64) ([]int, error) {
	type sum struct {
		cost     int64
		loss     float64
		previous int // of the front before
		choice   int
	}
	fronts := make([][]sum, len(sites)+1)
	fronts[0] = []sum{{}}
	for i, choices := range sites {
		var all []sum
		for k, c := range choices {
			if c.Cost < 0 || c.Loss != c.Loss {
				return nil, unitError("site %d: a choice of cost %d and loss %v", i, c.Cost, c.Loss)
			}
			for from, s := range fronts[i] {
				if c.Cost <= budget-s.cost {
					all = append(all, sum{s.cost + c.Cost, s.loss + c.Loss, from, k})
				}
			}
		}
		slices.SortFunc(all, func(a, b sum) int {
			return cmp.Or(cmp.Compare(a.cost, b.cost), cmp.Compare(a.loss, b.loss), a.previous-b.previous, a.choice-b.choice)
		})
		for _, s := range all {
			if front := fronts[i+1]; len(front) == 0 || s.loss < front[len(front)-1].loss {
				fronts[i+1] = append(front, s)
			}
		}
		if len(fronts[i+1]) == 0 {
			return nil, unitError("no choices for the first %d sites cost %d or less: allow more, or let more units go", i+1, budget)
		}
	}
	picked := make([]int, len(sites))
	at := len(fronts[len(sites)]) - 1
	for i := len(sites); i > 0; i-- {
		s := fronts[i][at]
		picked[i-1], at = s.choice, s.previous
	}
	return picked, nil
}
