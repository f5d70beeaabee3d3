// Command lm measures compression of two real language models and prints the
// tables of docs/benchmarks.md. It needs the models and their data, which are
// not part of the project:
//
//	go run ./internal/bench/lm -data ../shared/data [-model llm-stories260k] [-only "3 bits"] [-draws 5]
//
// Methods are given as a recipe's quantize step has them, beside bits and
// granularity:
//
//	go run ./internal/bench/lm -methods 'nearest=method: nearest; GPTQ=method: gptq, act_order: true'
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"

	"github.com/fettle-dev/fettle/internal/bench/methods"
	"github.com/fettle-dev/fettle/pipeline"
	"github.com/fettle-dev/fettle/record"
)

func main() {
	data := flag.String("data", "../shared/data", "folder of real models and data")
	name := flag.String("model", "", "one model's folder; default all")
	list := flag.String("methods", methods.Default, "entries of label=keys of the quantize step, divided by ;")
	only := flag.String("only", "", `run only settings whose name, such as "3 bits, groups of 32, GPTQ, aligned", holds this`)
	draws := flag.Int("draws", 1, "calibration draws: 1 takes the first documents, N > 1 draws them with seeds 1 to N")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := bench(ctx, *data, *name, *list, *only, *draws); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

const (
	calibrationDocuments = 128
	evaluationDocuments  = 200
)

// subject is a model with its data, as recipes name them.
type subject struct{ folder, calibration, evaluation string }

const text = `format: text, text: {separator: "<|endoftext|>", strip: true, min_chars: 51, length: 512, skip_long: true, bos: 1, prefix: false}`

var subjects = []subject{
	{
		"llm-stories260k",
		"data: llm-stories260k/calib.u16, format: u16",
		"data: llm-stories260k/valid.u16, format: u16",
	},
	{
		"llm-tinystories-656k",
		"data: text-tinystories/test.txt, " + text,
		"data: text-tinystories/valid.txt, " + text,
	},
}

// grid is a row of the first table.
type grid struct {
	bits                    int
	granularity, parameters string
}

func grids() []grid {
	var all []grid
	for _, bits := range []int{4, 3, 2} {
		all = append(all,
			grid{bits, "per channel", "granularity: channel"},
			grid{bits, "groups of 32", "group_size: 32"})
	}
	return all
}

// cell is a setting, and its runs with one calibration draw each.
type cell struct {
	grid    grid
	method  methods.Method
	recipes []*pipeline.Recipe
	runs    []*record.Run
}

func bench(ctx context.Context, data, name, list, only string, draws int) error {
	columns, err := methods.Parse(list)
	if err != nil {
		return err
	}
	if draws < 1 {
		return fmt.Errorf("%d draws: want 1 or more", draws)
	}
	// All recipes come first, so that a fault in one costs no time.
	var chosen []subject
	var tables [][]*cell
	for _, s := range subjects {
		if name != "" && name != s.folder {
			continue
		}
		cells, err := settings(s, columns, data, only, draws)
		if err != nil {
			return err
		}
		chosen, tables = append(chosen, s), append(tables, cells)
	}
	if len(chosen) == 0 {
		return fmt.Errorf("no model %s is known here", name)
	}
	for i, s := range chosen {
		for _, c := range tables[i] {
			if err := c.run(ctx); err != nil {
				return fmt.Errorf("%s, %s: %w", s.folder, c.name(), err)
			}
		}
		if len(tables[i]) == 0 {
			continue
		}
		heading(s, tables[i])
		overview(columns, tables[i])
		details(tables[i])
	}
	return nil
}

func (c *cell) name() string {
	return fmt.Sprintf("%d bits, %s, %s", c.grid.bits, c.grid.granularity, c.method.Label)
}

func settings(s subject, columns []methods.Method, data, only string, draws int) ([]*cell, error) {
	var cells []*cell
	for _, g := range grids() {
		for _, m := range columns {
			c := &cell{grid: g, method: m}
			if !strings.Contains(c.name(), only) {
				continue
			}
			for draw := range draws {
				seed := ""
				if draws > 1 {
					seed = fmt.Sprintf(", seed: %d", draw+1)
				}
				text := fmt.Sprintf(`version: 1
model: {path: %s}
calibration: {%s, samples: %d%s}
rules: [{match: "*", steps: [{quantize: {%s, bits: %d, %s}}]}]
evaluate: {%s, samples: %d}
`, s.folder, s.calibration, calibrationDocuments, seed, m.Step, g.bits, g.parameters, s.evaluation, evaluationDocuments)
				recipe, err := pipeline.ParseRecipe([]byte(text), filepath.Join(data, "recipe.yaml"))
				if err != nil {
					return nil, fmt.Errorf("%s: %w", c.name(), err)
				}
				c.recipes = append(c.recipes, recipe)
			}
			cells = append(cells, c)
		}
	}
	return cells, nil
}

// run runs the setting with each draw. What it writes is deleted.
func (c *cell) run(ctx context.Context) error {
	for _, recipe := range c.recipes {
		temp, err := os.MkdirTemp("", "fettle-bench-*")
		if err != nil {
			return err
		}
		recipe.Output.Path = filepath.Join(temp, "out")
		run, err := pipeline.Run(ctx, recipe, pipeline.Options{})
		if removed := os.RemoveAll(temp); err == nil {
			err = removed
		}
		if err != nil {
			return err
		}
		c.runs = append(c.runs, run)
	}
	return nil
}
