package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/urfave/cli/v2"

	"github.com/fettle-dev/fettle/internal/atomicfile"
	"github.com/fettle-dev/fettle/pipeline"
	"github.com/fettle-dev/fettle/record"
)

func searchCommand() *cli.Command {
	return &cli.Command{
		Name:      "search",
		Usage:     "find the best levels of layers for a size, and compress to it",
		ArgsUsage: "MODEL",
		Description: `A rule with levels says what its layers may get, such as
levels: [{bits: [2, 3, 4]}, {keep: true}]. fettle measures the whole model with
other levels again and again (EvoPress), within a size that counts every byte of
the weight files, and compresses the model with the best that it finds. Sizes are
bytes (110KB, 64MiB), a share of the source (25%), or average bits (2.5 bits).

  fettle search resnet20.th --recipe fit.yaml --fit 110KB --out OUT
  fettle search resnet20.th --recipe fit.yaml --fit 100KB --fit 120KB --out OUTS
  fettle search resnet20.th --recipe fit.yaml --recipes FOUND

With several sizes, --out gets a folder for each. What is done is kept in the
cache: a search that is stopped goes on where it was, with the same result.`,
		Flags: append(append(recipeFlags(), workFlags()...),
			&cli.StringSliceFlag{Name: "fit", Usage: "`SIZE` in place of the recipe's search.fit; once for each size"},
			&cli.IntFlag{Name: "generations", DefaultText: "the recipe's", Usage: "how many generations of candidates to try"},
			&cli.Uint64Flag{Name: "seed", DefaultText: "the recipe's", Usage: "of the search's random choices"},
			&cli.StringFlag{Name: "out", Aliases: []string{"o"}, Usage: "`FOLDER` to write the compressed model to, or for several sizes a folder of each; must not exist yet"},
			&cli.StringFlag{Name: "recipes", Usage: "`FOLDER` to write the recipes to that were found, for fettle compress"},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, DisableDefaultText: true, Usage: "no progress, no summary; only errors"},
		),
		Action: runSearch,
	}
}

func runSearch(c *cli.Context) error {
	recipe, err := readRecipe(c)
	if err != nil {
		return err
	}
	if out := c.String("out"); out != "" {
		recipe.Output.Path = out
	}
	out := recipe.Output.Path
	if out == "" && c.String("recipes") == "" {
		return usagef("nothing to write; add --out FOLDER for the compressed model, --recipes FOLDER for what was found, or both")
	}
	if sizes := c.StringSlice("fit"); len(sizes) > 0 {
		if err := recipe.SetFit(sizes...); err != nil {
			return err
		}
	}
	if recipe.Search != nil {
		if n := c.Int("generations"); n > 0 {
			recipe.Search.Generations = n
		}
		if c.IsSet("seed") {
			recipe.Search.Seed = c.Uint64("seed")
		}
	}
	for _, folder := range []string{out, c.String("recipes")} {
		if folder == "" {
			continue
		}
		if _, err := os.Lstat(folder); err == nil {
			return usagef("output folder %s exists; remove it or name another", folder)
		}
	}
	options, err := workOptions(c)
	if err != nil {
		return err
	}
	progress := newProgress(c.App.ErrWriter, c.Bool("quiet"))
	options.Events = progress.event
	found, err := pipeline.Find(c.Context, recipe, options)
	progress.close()
	if err != nil {
		return err
	}
	if !c.Bool("quiet") {
		printFound(c.App.Writer, found.Record)
	}
	if folder := c.String("recipes"); folder != "" {
		if err := writeRecipes(folder, found); err != nil {
			return err
		}
	}
	if out == "" {
		return nil
	}
	return compressFound(c, found, options, out)
}

// compressFound compresses to each size that was searched for.
func compressFound(c *cli.Context, found *pipeline.Found, options pipeline.Options, out string) error {
	options.Finish = writeReport
	for i, recipe := range found.Recipes {
		folder := out
		if len(found.Recipes) > 1 {
			if err := os.MkdirAll(out, 0o755); err != nil {
				return &pipeline.OutputError{Path: out, Err: err}
			}
			folder = filepath.Join(out, slug(found.Record.Results[i].Asked))
		}
		recipe.Output.Path = folder
		progress := newProgress(c.App.ErrWriter, c.Bool("quiet"))
		options.Events = progress.event
		run, err := found.Run(c.Context, i, options)
		progress.close()
		if err != nil {
			return err
		}
		if c.Bool("quiet") {
			continue
		}
		fmt.Fprintln(c.App.Writer)
		if len(found.Recipes) > 1 {
			fmt.Fprintf(c.App.Writer, "%-10s %s\n", "fit", found.Record.Results[i].Asked)
		}
		if err := printSummary(c.App.Writer, run, folder); err != nil {
			return err
		}
	}
	return nil
}

// writeRecipes writes the recipes that were found, each named by its size.
func writeRecipes(folder string, found *pipeline.Found) error {
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return &pipeline.OutputError{Path: folder, Err: err}
	}
	for i, recipe := range found.Recipes {
		text, err := recipe.TextIn(folder)
		if err != nil {
			return err
		}
		file := filepath.Join(folder, slug(found.Record.Results[i].Asked)+".yaml")
		err = atomicfile.Write(file, func(w io.Writer) error {
			_, err := io.WriteString(w, text)
			return err
		})
		if err != nil {
			return &pipeline.OutputError{Path: folder, Err: err}
		}
	}
	return nil
}

// slug is a size as the name of a file.
func slug(size string) string {
	return strings.NewReplacer(" ", "-", "%", "pct", "/", "-", `\`, "-").Replace(strings.TrimSpace(size))
}

// printFound says what was found for each size.
func printFound(w io.Writer, s *record.Search) {
	t := table.NewWriter()
	t.SetOutputMirror(w)
	t.SetStyle(table.StyleLight)
	t.Style().Format.Header = text.FormatDefault
	t.Style().Options.DrawBorder = false
	t.AppendHeader(table.Row{"fit", "bytes", "unused", s.Fitness, "uniform", "dp", "greedy", "random"})
	var right []table.ColumnConfig
	for n := 2; n <= 8; n++ {
		right = append(right, table.ColumnConfig{Number: n, Align: text.AlignRight, AlignHeader: text.AlignRight})
	}
	t.SetColumnConfigs(right)
	for _, r := range s.Results {
		row := table.Row{r.Asked, r.Bytes, fmt.Sprintf("%.2f %%", 100*float64(r.Budget-r.Bytes)/float64(r.Budget)), fmt.Sprintf("%.4g", r.Fitness)}
		for _, b := range r.Baselines {
			row = append(row, fmt.Sprintf("%.4g", b.Fitness))
		}
		t.AppendRow(row)
	}
	t.Render()
	fmt.Fprintf(w, "%s of %d genes on %d %s, lower is better; %s\n", s.Fitness, len(s.Genes), s.Results[0].Samples, s.Unit, time.Duration(s.Seconds*float64(time.Second)).Round(100*time.Millisecond))
}

// printSpace says what a search may choose among.
func printSpace(c *cli.Context, recipe *pipeline.Recipe, s *pipeline.Space) {
	w := c.App.Writer
	t := table.NewWriter()
	t.SetOutputMirror(w)
	t.SetStyle(table.StyleLight)
	t.Style().Format.Header = text.FormatDefault
	t.Style().Options.DrawBorder = false
	t.AppendHeader(table.Row{"gene", "layers", "levels", "bytes"})
	for _, g := range s.Genes {
		var names, bytes, left []string
		for _, l := range g.Levels {
			if l.LeftOut != "" {
				left = append(left, fmt.Sprintf("warning: %s cannot be %s: %s", g.Name, l.Name, l.LeftOut))
				continue
			}
			names, bytes = append(names, l.Name), append(bytes, fmt.Sprint(l.Bytes))
		}
		t.AppendRow(table.Row{g.Name, len(g.Layers), strings.Join(names, "; "), strings.Join(bytes, "; ")})
		for _, text := range left {
			defer fmt.Fprintln(w, text)
		}
	}
	t.Render()
	fmt.Fprintf(w, "\n%s: a search among %d genes, %d to %d bytes (%s at most to %s of %s)\n", s.Architecture, len(s.Genes), s.Smallest, s.Largest,
		bytesText(s.Smallest), bytesText(s.Largest), bytesText(s.SourceBytes))
	for i, fit := range recipe.Search.Fit {
		fmt.Fprintf(w, "fit %s: at most %d bytes\n", fit, s.Budgets[i])
	}
	for _, note := range s.Notes {
		fmt.Fprintf(w, "note: %s\n", note)
	}
}
