package main

import (
	"fmt"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/urfave/cli/v2"

	"github.com/fettle-dev/fettle/export"
	"github.com/fettle-dev/fettle/layer"
	"github.com/fettle-dev/fettle/pipeline"
	"github.com/fettle-dev/fettle/prune"
)

func planCommand() *cli.Command {
	return &cli.Command{
		Name:      "plan",
		Usage:     "say which layer gets what, and the exact size, without doing it",
		ArgsUsage: "MODEL",
		Description: `Allocations that look at data (owl, rate-distortion) run the original model on
them; what they find is kept in the cache, where fettle compress finds it. Of a
recipe with a search it says what that may choose among.`,
		Flags: append(recipeFlags(), workFlags()...),
		Action: func(c *cli.Context) error {
			recipe, err := readRecipe(c)
			if err != nil {
				return err
			}
			options, err := workOptions(c)
			if err != nil {
				return err
			}
			if recipe.Search != nil {
				space, err := pipeline.MakeSpace(c.Context, recipe, options)
				if err != nil {
					return err
				}
				printSpace(c, recipe, space)
				return nil
			}
			plan, err := pipeline.MakePlan(c.Context, recipe, options)
			if err != nil {
				return err
			}
			printPlan(c, plan)
			return nil
		},
	}
}

// printRemoved lists what goes before anything is compressed.
func printRemoved(c *cli.Context, plan *pipeline.Plan) {
	if len(plan.Removed) == 0 {
		return
	}
	t := table.NewWriter()
	t.SetOutputMirror(c.App.Writer)
	t.SetStyle(table.StyleLight)
	t.Style().Format.Header = text.FormatDefault
	t.Style().Options.DrawBorder = false
	t.AppendHeader(table.Row{"removed from", "kind", "kept", "of", "bytes"})
	for _, r := range plan.Removed {
		t.AppendRow(table.Row{r.Name, r.Kind, r.Keep, r.Units, r.Bytes})
	}
	var right []table.ColumnConfig
	for n := 3; n <= 5; n++ {
		right = append(right, table.ColumnConfig{Number: n, Align: text.AlignRight})
	}
	t.SetColumnConfigs(right)
	t.Render()
	if len(plan.Layers) > 0 {
		fmt.Fprintln(c.App.Writer)
	}
}

// bitsText says what average bits so many compressed layers have; "" for none.
func bitsText(layers int, bits float64) string {
	if layers == 0 {
		return ""
	}
	return fmt.Sprintf(", %.2f bits per compressed weight", bits)
}

func printPlan(c *cli.Context, plan *pipeline.Plan) {
	t := table.NewWriter()
	t.SetOutputMirror(c.App.Writer)
	t.SetStyle(table.StyleLight)
	t.Style().Format.Header = text.FormatDefault
	t.Style().Options.DrawBorder = false
	columns := planColumns(plan)
	var head table.Row
	var configs []table.ColumnConfig
	for i, column := range columns {
		head = append(head, column.name)
		if column.right {
			configs = append(configs, table.ColumnConfig{Number: i + 1, Align: text.AlignRight})
		}
	}
	t.AppendHeader(head)
	for i := range plan.Layers {
		var row table.Row
		for _, column := range columns {
			row = append(row, column.of(&plan.Layers[i]))
		}
		t.AppendRow(row)
	}
	t.SetColumnConfigs(configs)
	printRemoved(c, plan)
	if len(plan.Layers) > 0 {
		t.Render()
	}
	for _, l := range plan.Layers {
		for _, f := range l.Fallbacks {
			fmt.Fprintf(c.App.Writer, "warning: layer %s: %s instead of %s: %s\n", l.Name, f.Got, f.Asked, f.Reason)
		}
	}
	if len(plan.Removed) > 0 || len(plan.Layers) > 0 {
		fmt.Fprintln(c.App.Writer)
	}
	fmt.Fprintf(c.App.Writer, "%s: %d layers compressed, %d tensors kept (%s)\n", plan.Architecture, len(plan.Layers), len(plan.Kept), bytesText(plan.KeptBytes()))
	fmt.Fprintf(c.App.Writer, "size %s → %d bytes of weights exactly (%.1f %% of the source%s)\n",
		bytesText(plan.SourceBytes), plan.WeightBytes, 100*float64(plan.WeightBytes)/float64(plan.SourceBytes), bitsText(len(plan.Layers), plan.AverageBits()))
	if plan.Budget > 0 {
		fmt.Fprintf(c.App.Writer, "beside them up to %s of low-rank factors, which are divided when their worth is known\n", bytesText(plan.Budget))
	}
	for _, note := range plan.Notes {
		fmt.Fprintf(c.App.Writer, "note: %s\n", note)
	}
	fmt.Fprintf(c.App.Writer, "memory: at most %s beside activations, for layer %s\n", bytesText(plan.Memory.Fixed), plan.Memory.At)
}

// planColumn is a column of the plan's table.
type planColumn struct {
	name  string
	right bool
	of    func(l *pipeline.PlanLayer) any
}

// planColumns returns the columns that some layer fills.
func planColumns(plan *pipeline.Plan) []planColumn {
	var pruned, quantized, term bool
	for _, l := range plan.Layers {
		pruned, quantized, term = pruned || l.Prune != nil, quantized || l.Quantize != nil, term || l.Compensate != nil
	}
	columns := []planColumn{
		{"layer", false, func(l *pipeline.PlanLayer) any { return l.Name }},
		{"shape", false, func(l *pipeline.PlanLayer) any { return fmt.Sprint(l.Shape) }},
	}
	if pruned {
		columns = append(columns,
			planColumn{"prune", false, pruneText},
			planColumn{"sparsity", true, func(l *pipeline.PlanLayer) any {
				if l.Prune == nil {
					return "–"
				}
				return fmt.Sprintf("%.2f %%", 100*l.Sparsity())
			}},
			planColumn{"survivors", true, func(l *pipeline.PlanLayer) any {
				if l.Prune == nil {
					return "–"
				}
				return l.Prune.Survivors
			}})
	}
	if quantized {
		columns = append(columns,
			planColumn{"method", false, func(l *pipeline.PlanLayer) any {
				if l.Quantize == nil {
					return "–"
				}
				return l.Quantize.Method
			}},
			planColumn{"bits", true, func(l *pipeline.PlanLayer) any {
				if l.Quantize == nil {
					return "–"
				}
				return l.Quantize.Bits
			}},
			planColumn{"grid", false, gridText})
	}
	if term {
		columns = append(columns, planColumn{"rank", true, func(l *pipeline.PlanLayer) any {
			switch {
			case l.Compensate == nil:
				return "–"
			case l.Compensate.Rank == 0:
				return "by budget"
			}
			return l.Compensate.Rank
		}})
	}
	return append(columns, planColumn{"bytes", true, func(l *pipeline.PlanLayer) any { return l.Spec.Bytes() }})
}

func pruneText(l *pipeline.PlanLayer) any {
	if l.Prune == nil {
		return "–"
	}
	text := fmt.Sprintf("%s, %s", l.Prune.Method, l.Prune.Pattern)
	if l.Prune.Pattern.Kind == prune.Unstructured {
		text = fmt.Sprintf("%s per %s", l.Prune.Method, l.Prune.Scope)
	}
	if l.Spec.Pruned.Layout != export.MaskNone {
		text += fmt.Sprintf(" (%s)", l.Spec.Pruned.Layout)
	}
	return text
}

func gridText(l *pipeline.PlanLayer) any {
	if l.Quantize == nil {
		return "–"
	}
	grid := string(l.Quantize.Granularity)
	if l.Quantize.Granularity == layer.PerGroup {
		grid = fmt.Sprintf("group of %d", l.Quantize.GroupSize)
	}
	if l.Quantize.Format != layer.Integer {
		grid = fmt.Sprintf("%s, %s", l.Quantize.Format, grid)
	}
	return grid
}
