package pipeline

import (
	"context"
	"fmt"
	"math"

	"github.com/fettle-dev/fettle/layer"
	"github.com/fettle-dev/fettle/prune"
)

// removalLevels is how many parts the units of a site are divided into when they
// are shared out.
const removalLevels = 32

// allocate shares out what entries of allocation global remove among their sites:
// as many bytes stay as with uniform shares, where the sum over sites of the
// relative errors is least. Errors are those of one site alone in the original
// model, without repair of other sites.
func (m *removal) allocate(ctx context.Context) error {
	losses := map[int][]float64{}
	for i := range m.cuts {
		if c := &m.cuts[i]; !c.site.Whole() && c.entry.Allocation == "global" {
			loss, err := m.losses(ctx, c)
			if err != nil {
				return fmt.Errorf("remove %s: %w", c.site.Name, err)
			}
			losses[i] = loss
		}
	}
	for at := range m.recipe.Remove {
		var mine []int
		for i := range m.cuts {
			if losses[i] != nil && m.cuts[i].at == at {
				mine = append(mine, i)
			}
		}
		if len(mine) == 0 {
			continue
		}
		var choices [][]prune.UnitChoice
		budget := int64(0)
		for _, i := range mine {
			c := &m.cuts[i]
			budget += int64(c.count) * m.unitBytes(&c.site)
			choices = append(choices, m.choices(c, losses[i]))
		}
		picked, err := prune.ChooseCounts(choices, budget)
		if err != nil {
			return fmt.Errorf("remove[%d]: %w", at, err)
		}
		for k, i := range mine {
			m.cuts[i].count = choices[k][picked[k]].Keep
		}
	}
	return nil
}

// losses returns by how much a site's relative error grows when 0, 1, 2 … units
// of each run go, from the scores that they had when they went.
func (m *removal) losses(ctx context.Context, c *cut) ([]float64, error) {
	o := c.entry.options(c.site.Units / c.site.Run)
	o.Repair = false
	k, err := m.key(ctx, "unit losses", c, o, "")
	if err != nil {
		return nil, err
	}
	v, _, err := unit(m.store, k, layer.DecodeVectors, layer.EncodeVectors, func() (*layer.Vectors, error) {
		prob, err := m.problem(ctx, c)
		if err != nil {
			return nil, err
		}
		s, err := prune.SelectUnits(ctx, m.pool, prob, o)
		if err != nil {
			return nil, err
		}
		energy := 0.0
		for _, r := range s.Readers {
			energy += r.Errors.Energy
		}
		loss := make([]float64, c.site.Run) // of one more that goes
		gone := map[int]int{}               // units of each run
		for i, u := range s.Order {
			run := u / c.site.Run
			gone[run]++
			if energy > 0 {
				loss[gone[run]] += s.Scores[i] / energy
			}
		}
		for i := 1; i < len(loss); i++ {
			loss[i] += loss[i-1]
		}
		return &layer.Vectors{Of: [][]float64{loss}}, nil
	})
	if err != nil {
		return nil, err
	}
	if len(v.Of) != 1 || len(v.Of[0]) != c.site.Run {
		return nil, &CacheError{Dir: m.store.dir, Err: errLostUnit}
	}
	return v.Of[0], nil
}

// choices are the numbers of units that a site may keep: the uniform one, and 1/32,
// 2/32 … of all.
func (m *removal) choices(c *cut, loss []float64) []prune.UnitChoice {
	runs := c.site.Units / c.site.Run
	stays := map[int]bool{c.count / runs: true}
	for level := 1; level <= removalLevels; level++ {
		stays[max(1, int(math.Round(float64(c.site.Run*level)/removalLevels)))] = true
	}
	bytes := m.unitBytes(&c.site)
	var list []prune.UnitChoice
	for stay := 1; stay <= c.site.Run; stay++ {
		if stays[stay] {
			list = append(list, prune.UnitChoice{Keep: stay * runs, Cost: int64(stay*runs) * bytes, Loss: loss[c.site.Run-stay]})
		}
	}
	return list
}
