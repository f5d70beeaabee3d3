package main

import (
	"fmt"
	"math"
	"strings"

	"github.com/fettle-dev/fettle/internal/bench/methods"
	"github.com/fettle-dev/fettle/record"
)

// heading says what was measured, from the records.
func heading(s subject, cells []*cell) {
	run := cells[0].runs[0]
	e := run.Evaluation.Language
	fmt.Printf("### %s\n\n%d parameters, %d bytes. Original: %.4f nats per token, %d tokens of %d documents.\n",
		s.folder, run.Source.Parameters, run.Source.Bytes, e.Original.Loss, e.Tokens, e.Documents)
	if draws := len(cells[0].runs); draws > 1 {
		fmt.Printf("Calibration: %d documents, drawn with seeds 1 to %d; ± is the standard error over these draws.\n\n", calibrationDocuments, draws)
		return
	}
	for _, d := range run.Data {
		if d.Role == "calibration" {
			fmt.Printf("Calibration: %d tokens of the first %d documents; ± is half the 95 %% paired interval over documents.\n\n", d.Tokens, d.Samples)
		}
	}
}

// overview prints nats per token added: a row for each grid, a column for each
// method.
func overview(columns []methods.Method, cells []*cell) {
	at := make(map[grid]map[string]*cell)
	for _, c := range cells {
		if at[c.grid] == nil {
			at[c.grid] = make(map[string]*cell)
		}
		at[c.grid][c.method.Label] = c
	}
	fmt.Print("| bits | scales |")
	for _, m := range columns {
		fmt.Printf(" %s |", m.Label)
	}
	fmt.Printf("\n|---|---|%s\n", strings.Repeat("---|", len(columns)))
	for _, g := range grids() {
		if at[g] == nil {
			continue
		}
		fmt.Printf("| %d | %s |", g.bits, g.granularity)
		for _, m := range columns {
			text := ""
			if c := at[g][m.Label]; c != nil {
				text = c.added()
			}
			fmt.Printf(" %s |", text)
		}
		fmt.Println()
	}
	fmt.Println()
}

// added returns the nats per token that the setting adds, with their spread.
func (c *cell) added() string {
	if len(c.runs) == 1 {
		e := c.runs[0].Evaluation.Language
		return fmt.Sprintf("%.4f ± %.4f", e.LossIncrease, (e.Interval[1]-e.Interval[0])/2)
	}
	mean, deviation := c.meanAdded()
	return fmt.Sprintf("%.4f ± %.4f", mean, deviation)
}

// meanAdded returns the mean over draws and its standard error.
func (c *cell) meanAdded() (mean, deviation float64) {
	n := float64(len(c.runs))
	for _, run := range c.runs {
		mean += run.Evaluation.Language.LossIncrease / n
	}
	for _, run := range c.runs {
		d := run.Evaluation.Language.LossIncrease - mean
		deviation += d * d / (n - 1)
	}
	return mean, math.Sqrt(deviation / n)
}

// details prints a row for each run.
func details(cells []*cell) {
	fmt.Println("| bits | scales | method | draw | nats added | 95 % interval | KL | top-1 agreement | solver s | all s | bytes | fallbacks |")
	fmt.Println("|---|---|---|---|---|---|---|---|---|---|---|---|")
	for _, c := range cells {
		for i, run := range c.runs {
			draw := "first"
			if len(c.runs) > 1 {
				draw = fmt.Sprint(i + 1)
			}
			e := run.Evaluation.Language
			fmt.Printf("| %d | %s | %s | %s | %.4f | %.4f … %.4f | %.4f | %.2f %% | %.2f | %.1f | %d | %d |\n",
				c.grid.bits, c.grid.granularity, c.method.Label, draw, e.LossIncrease, e.Interval[0], e.Interval[1],
				e.KL, e.Agreement, seconds(run, "solve"), run.Seconds, run.Output.WeightBytes, fallbacks(run))
		}
	}
	fmt.Println()
}

func seconds(run *record.Run, stage string) float64 {
	for _, s := range run.Stages {
		if s.Name == stage {
			return s.Seconds
		}
	}
	return 0
}

// fallbacks counts the layers that got something else than was asked for.
func fallbacks(run *record.Run) int {
	n := 0
	for _, l := range run.Layers {
		if len(l.Fallbacks) > 0 {
			n++
		}
	}
	return n
}
