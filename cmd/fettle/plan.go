package main

import (
	"fmt"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/urfave/cli/v2"

	"github.com/fettle-dev/fettle/layer"
	"github.com/fettle-dev/fettle/pipeline"
)

func planCommand() *cli.Command {
	return &cli.Command{
		Name:      "plan",
		Usage:     "say which layer gets what, and the exact size, without doing it",
		ArgsUsage: "MODEL",
		Flags:     recipeFlags(),
		Action: func(c *cli.Context) error {
			recipe, err := readRecipe(c)
			if err != nil {
				return err
			}
			plan, err := pipeline.MakePlan(c.Context, recipe)
			if err != nil {
				return err
			}
			printPlan(c, plan)
			return nil
		},
	}
}

func printPlan(c *cli.Context, plan *pipeline.Plan) {
	t := table.NewWriter()
	t.SetOutputMirror(c.App.Writer)
	t.SetStyle(table.StyleLight)
	t.Style().Format.Header = text.FormatDefault
	t.Style().Options.DrawBorder = false
	t.AppendHeader(table.Row{"layer", "shape", "method", "bits", "grid", "bytes"})
	for _, l := range plan.Layers {
		grid := string(l.Options.Granularity)
		if l.Options.Granularity == layer.PerGroup {
			grid = fmt.Sprintf("group of %d", l.Options.GroupSize)
		}
		if l.Options.Format != layer.Integer {
			grid = fmt.Sprintf("%s, %s", l.Options.Format, grid)
		}
		t.AppendRow(table.Row{l.Name, fmt.Sprint(l.Shape), l.Options.Method, l.Options.Bits, grid, l.Spec.Bytes()})
	}
	right := func(n int) table.ColumnConfig {
		return table.ColumnConfig{Number: n, Align: text.AlignRight}
	}
	t.SetColumnConfigs([]table.ColumnConfig{right(4), right(6)})
	t.Render()
	for _, l := range plan.Layers {
		for _, f := range l.Fallbacks {
			fmt.Fprintf(c.App.Writer, "warning: layer %s: %s instead of %s: %s\n", l.Name, f.Got, f.Asked, f.Reason)
		}
	}
	var kept int64
	for _, k := range plan.Kept {
		kept += k.Bytes()
	}
	fmt.Fprintf(c.App.Writer, "\n%s: %d layers compressed, %d tensors kept (%s)\n", plan.Architecture, len(plan.Layers), len(plan.Kept), bytesText(kept))
	fmt.Fprintf(c.App.Writer, "size %s → %d bytes of weights exactly (%.1f %% of the source, %.2f bits per compressed weight)\n",
		bytesText(plan.SourceBytes), plan.WeightBytes, 100*float64(plan.WeightBytes)/float64(plan.SourceBytes), plan.AverageBits())
	for _, note := range plan.Notes {
		fmt.Fprintf(c.App.Writer, "note: %s\n", note)
	}
	fmt.Fprintf(c.App.Writer, "memory: at most %s beside activations, for layer %s\n", bytesText(plan.Memory.Fixed), plan.Memory.At)
}
