package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"math"
	"strings"
	"time"

	"github.com/fettle-dev/fettle/internal/safetensors"
	"github.com/fettle-dev/fettle/record"
	"github.com/fettle-dev/fettle/search"
)

// generation is what is kept of one.
type generation struct {
	State       search.State              `json:"state"`
	Fitness     *float64                  `json:"fitness,omitempty"` // nil where it was not measured
	Bytes       int64                     `json:"bytes"`
	Improved    bool                      `json:"improved"`
	Seconds     float64                   `json:"seconds"`
	Evaluations []record.SearchEvaluation `json:"evaluations"`
}

// evolve runs EvoPress from where units on disk say that it was, and fills in the
// record's generations and evaluations.
func (f *finder) evolve(ctx context.Context, fit string, space *search.Space, start search.Candidate, result *record.SearchResult) (search.Candidate, error) {
	o := f.options()
	o.Start = start
	id, err := f.key("evolve", space.Budget(), spaceBytes(space), start, o.Seed, o.Offspring, o.Stages, o.Random, f.asked.Switch)
	if err != nil {
		return nil, err
	}
	var keys []string
	for g := range o.Generations + 1 {
		k, err := key(id, g)
		if err != nil {
			return nil, err
		}
		keys = append(keys, k)
	}
	var seconds float64
	note := func(g generation) {
		seconds += g.Seconds
		at := record.SearchGeneration{Generation: g.State.Generation, Bytes: g.Bytes, Levels: g.State.Parent, Improved: g.Improved, Seconds: seconds, Fitness: -1}
		if g.Fitness != nil {
			at.Fitness = *g.Fitness
		}
		result.Generations = append(result.Generations, at)
		result.Evaluations = append(result.Evaluations, g.Evaluations...)
		p := &SearchProgress{
			Fit: fit, Generation: g.State.Generation, Generations: o.Generations, Fitness: at.Fitness, Bytes: g.Bytes,
			Budget: space.Budget().Bytes, Improved: g.Improved,
		}
		if n := g.State.Generation; n > 0 {
			p.Left = time.Duration(seconds / float64(n) * float64(o.Generations-n) * float64(time.Second))
		}
		f.run.clock.emit(Event{Search: p})
	}
	for _, k := range keys {
		g, ok := load(f.run.kept, k, decodeGeneration)
		if !ok || space.Check(g.State.Parent) != nil || g.State.Seed != o.Seed {
			break
		}
		f.run.store.reused++
		state := g.State
		o.Resume = &state
		note(g)
	}
	var lost error
	var log []record.SearchEvaluation
	began := time.Now()
	o.Progress = func(p search.Progress) {
		g := generation{State: p.State, Bytes: p.Cost, Improved: p.Improved, Seconds: time.Since(began).Seconds(), Evaluations: log}
		if !math.IsNaN(p.Fitness) && !math.IsInf(p.Fitness, 0) {
			g.Fitness = &p.Fitness
		}
		f.run.store.computed++
		lost = errors.Join(lost, save(f.run.kept, keys[p.State.Generation], g, encodeGeneration))
		note(g)
		log, began = nil, time.Now()
	}
	best, err := search.Evolve(ctx, space, o, func(ctx context.Context, candidates []search.Candidate, batch search.Batch) ([]float64, error) {
		if lost != nil {
			return nil, lost
		}
		values, err := f.evaluate(ctx, candidates, batch)
		for i, v := range values {
			e := record.SearchEvaluation{Generation: batch.Generation, Stage: batch.Stage, Samples: batch.Samples, Bytes: space.Cost(candidates[i]), Fitness: v, Levels: letters(candidates[i])}
			if math.IsInf(v, 0) {
				e.Fitness = -1
			}
			log = append(log, e)
		}
		return values, err
	})
	if err = errors.Join(err, lost); err != nil {
		return nil, err
	}
	return best.Candidate, nil
}

// spaceBytes lists the bytes of all levels.
func spaceBytes(s *search.Space) (all [][]int64) {
	for _, g := range s.Genes() {
		var bytes []int64
		for _, l := range g.Levels {
			bytes = append(bytes, l.Bytes)
		}
		all = append(all, bytes)
	}
	return all
}

// letters writes a candidate's levels, a letter each.
func letters(c search.Candidate) string {
	const digits = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	var b strings.Builder
	for _, l := range c {
		if l < len(digits) {
			b.WriteByte(digits[l])
		} else {
			b.WriteByte('+')
		}
	}
	return b.String()
}

const generationKey = "fettle.generation"

// encodeGeneration writes a generation as the metadata of a safetensors file without
// tensors.
func encodeGeneration(w io.Writer, g generation) error {
	text, err := json.Marshal(g)
	if err != nil {
		return err
	}
	return safetensors.Write(w, nil, map[string]string{generationKey: string(text)})
}

func decodeGeneration(r io.ReaderAt, size int64) (g generation, err error) {
	h, err := safetensors.ReadHeader(r, size)
	if err != nil {
		return g, err
	}
	return g, json.Unmarshal([]byte(h.Metadata[generationKey]), &g)
}
