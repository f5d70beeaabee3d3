package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/fettle-dev/fettle/internal/atomicfile"
	"github.com/fettle-dev/fettle/internal/bytesize"
	"github.com/fettle-dev/fettle/pipeline"
	"github.com/fettle-dev/fettle/record"
	"github.com/fettle-dev/fettle/report"
)

// recipeFlags say what to do, for the commands that read a recipe.
func recipeFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "recipe", Aliases: []string{"r"}, Usage: "YAML `FILE` that says what to do (docs/recipes.md)"},
		&cli.StringFlag{Name: "calibration", Usage: "`FILE` of calibration data in place of the recipe's, of the same format"},
		&cli.StringFlag{Name: "moments", Usage: "`FILE` of moments of layers' inputs, taken elsewhere, in place of calibration"},
		&cli.StringFlag{Name: "evaluate", Usage: "`FILE` of evaluation data in place of the recipe's, of the same format"},
	}
}

// workFlags say with what to work, for the commands that compute.
func workFlags() []cli.Flag {
	return []cli.Flag{
		&cli.IntFlag{Name: "workers", DefaultText: "one for each processor", Usage: "goroutines that compute"},
		&cli.StringFlag{Name: "memory", Usage: "ceiling on memory, such as `8GB`: activations over it lie in a file, and a run that needs more is refused", DefaultText: "none; activations over half of the machine's memory lie in a file"},
		&cli.StringFlag{Name: "cache", Usage: "`FOLDER` in which finished work is kept and found again", EnvVars: []string{"FETTLE_CACHE"}, DefaultText: "the user's cache folder"},
		&cli.BoolFlag{Name: "no-cache", DisableDefaultText: true, Usage: "keep nothing and reuse nothing"},
	}
}

// workOptions are what workFlags say.
func workOptions(c *cli.Context) (o pipeline.Options, err error) {
	o.Workers, o.Version = c.Int("workers"), versionString()
	if o.Cache, err = cacheFolder(c); err != nil {
		return o, err
	}
	o.Memory, err = memoryCeiling(c)
	return o, err
}

func compressCommand() *cli.Command {
	return &cli.Command{
		Name:      "compress",
		Usage:     "compress a checkpoint as a recipe says",
		ArgsUsage: "MODEL",
		Description: `Reads MODEL (a PyTorch .pt, .pth or .th, safetensors, or a Hugging Face
folder), compresses the layers that the recipe's rules match, and writes a
folder with the weights, a manifest of hashes, the record of the run as JSON
and a report as HTML.
The folder appears when everything in it is written and has been read back.

  fettle compress resnet20.th --recipe best-w4.yaml --out OUT`,
		Flags: append(append(recipeFlags(), workFlags()...),
			&cli.StringFlag{Name: "out", Aliases: []string{"o"}, Usage: "`FOLDER` to write; must not exist yet"},
			&cli.StringSliceFlag{Name: "dense", Usage: "also write the dequantized model, as safetensors or pt (`FORMAT`)"},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, DisableDefaultText: true, Usage: "no progress, no summary; only errors"},
		),
		Action: func(c *cli.Context) error {
			recipe, err := readRecipe(c)
			if err != nil {
				return err
			}
			if out := c.String("out"); out != "" {
				recipe.Output.Path = out
			}
			if recipe.Output.Path == "" {
				return usagef("no output folder; add --out FOLDER, or output: {path: …} to the recipe")
			}
			if err := addDense(recipe, c.StringSlice("dense")); err != nil {
				return err
			}
			options, err := workOptions(c)
			if err != nil {
				return err
			}
			progress := newProgress(c.App.ErrWriter, c.Bool("quiet"))
			options.Events, options.Finish = progress.event, writeReport
			run, err := pipeline.Run(c.Context, recipe, options)
			progress.close()
			if err != nil {
				return err
			}
			if c.Bool("quiet") {
				return nil
			}
			return printSummary(c.App.Writer, run, recipe.Output.Path)
		},
	}
}

// memoryCeiling returns --memory in bytes, 0 for none.
func memoryCeiling(c *cli.Context) (int64, error) {
	text := c.String("memory")
	if text == "" {
		return 0, nil
	}
	n, err := bytesize.Parse(text)
	if err != nil {
		return 0, usagef("--memory: %w", err)
	}
	return n, nil
}

// readRecipe reads the recipe that a command names and puts what the command
// line says in its place.
func readRecipe(c *cli.Context) (*pipeline.Recipe, error) {
	if c.String("recipe") == "" {
		return nil, usagef("no recipe; add --recipe FILE (the recipes folder of the project has some)")
	}
	recipe, err := pipeline.ReadRecipe(c.String("recipe"))
	if err != nil {
		return nil, err
	}
	if c.NArg() > 0 || recipe.Model.Path == "" {
		if recipe.Model.Path, err = oneArgument(c, "MODEL"); err != nil {
			return nil, err
		}
	}
	if path := c.String("moments"); path != "" {
		if err := recipe.SetMoments(path); err != nil {
			return nil, err
		}
	}
	for _, d := range []struct {
		flag string
		data **pipeline.Data
	}{{"calibration", &recipe.Calibration}, {"evaluate", &recipe.Evaluate}} {
		path := c.String(d.flag)
		if path == "" {
			continue
		}
		if *d.data == nil {
			return nil, usagef("--%s names a file, and the recipe does not say how to read it; add %s: {data: …, format: …} to the recipe", d.flag, d.flag)
		}
		(*d.data).Path = path
	}
	return recipe, nil
}

func addDense(recipe *pipeline.Recipe, formats []string) error {
	for _, f := range formats {
		if f != "safetensors" && f != "pt" {
			return usagef("--dense %s is not known; it is safetensors or pt", f)
		}
		if !slices.Contains(recipe.Output.Dense, f) {
			recipe.Output.Dense = append(recipe.Output.Dense, f)
		}
	}
	return nil
}

func cacheFolder(c *cli.Context) (string, error) {
	if c.Bool("no-cache") {
		return "", nil
	}
	if dir := c.String("cache"); dir != "" {
		return dir, nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", usagef("no cache folder is known here (%w); name one with --cache, or use --no-cache", err)
	}
	return filepath.Join(dir, "fettle"), nil
}

func writeReport(dir string, run *record.Run) error {
	return atomicfile.Write(filepath.Join(dir, record.ReportName), func(w io.Writer) error {
		return report.HTML(w, run)
	})
}

// printSummary says what came out, in a few lines.
func printSummary(w io.Writer, run *record.Run, out string) error {
	p := func(format string, args ...any) { fmt.Fprintf(w, format+"\n", args...) }
	p("%-10s %s → %s (%.1f %% of the source%s)", "size",
		bytesText(run.Source.Bytes), bytesText(run.Output.WeightBytes), 100*run.Output.Ratio, bitsText(len(run.Layers), run.Output.AverageBits))
	printRemovals(p, run)
	printSteps(p, run)
	printWeightErrors(p, run)
	if e := run.Evaluation; e != nil && e.Language != nil {
		printLanguage(p, e.Language)
	} else if e != nil && e.Outputs != nil {
		printOutputs(p, e)
	} else if e != nil {
		tied := ""
		if e.Tied {
			tied = ", tied"
		}
		p("%-10s %.2f %% → %.2f %% on %d samples (drop %.2f points, 95 %% interval %.2f … %.2f%s)", "accuracy",
			e.Original.Top1, e.Compressed.Top1, e.Samples, e.AccuracyDrop, e.Interval[0], e.Interval[1], tied)
		p("%-10s loss %.4f → %.4f, KL %.4f, %d predictions changed", "outputs",
			e.Original.Loss, e.Compressed.Loss, e.KL, e.Changed)
	}
	if n := fallbackCount(run); n > 0 {
		p("%-10s %d layers did not get what the recipe asked for; the report names them", "fallbacks", n)
	}
	p("%-10s %.1f s, %d units computed, %d reused, peak memory %s", "work",
		run.Seconds, run.Units.Computed, run.Units.Reused, bytesText(run.PeakRSS))
	p("%-10s %s", "digest", run.Output.ManifestSHA256)
	p("%-10s %s", "report", filepath.Join(out, record.ReportName))
	return nil
}

// removedNames are the words for what is removed, one and many.
var removedNames = map[string][2]string{
	"block": {"block", "blocks"}, "attention": {"attention", "attentions"}, "mlp": {"MLP", "MLPs"},
	"kv_group": {"group of heads", "groups of heads"}, "query_head": {"query head", "query heads"}, "channel": {"channel", "channels"},
}

// printRemovals says what went before anything was compressed.
func printRemovals(p func(string, ...any), run *record.Run) {
	if len(run.Removed) == 0 {
		return
	}
	gone, of := map[string]int{}, map[string]int{}
	var kinds []string
	for _, r := range run.Removed {
		if of[r.Kind] == 0 {
			kinds = append(kinds, r.Kind)
		}
		gone[r.Kind] += r.Units - r.Kept
		of[r.Kind] += r.Units
	}
	var parts []string
	for _, kind := range kinds {
		name := removedNames[kind][1]
		if gone[kind] == 1 {
			name = removedNames[kind][0]
		}
		part := fmt.Sprintf("%d %s", gone[kind], name)
		if kind == "kv_group" || kind == "query_head" || kind == "channel" {
			part = fmt.Sprintf("%d of %d %s", gone[kind], of[kind], removedNames[kind][1])
		}
		parts = append(parts, part)
	}
	p("%-10s %s: %s of tensors", "removed", strings.Join(parts, ", "), bytesText(run.RemovedBytes))
	var worst *record.Removed
	for i := range run.Removed {
		if r := &run.Removed[i]; r.RelativeError != nil && (worst == nil || *r.RelativeError > *worst.RelativeError) {
			worst = r
		}
	}
	if worst != nil {
		p("%-10s largest relative error %.3g, %.3g without repair, where %d of %d stay of %s", "", *worst.RelativeError, *worst.PlainRelativeError, worst.Kept, worst.Units, worst.Name)
	}
}

// printSteps says what was pruned, and what low-rank terms were added.
func printSteps(p func(string, ...any), run *record.Run) {
	pruned, terms, factors := 0, 0, int64(0)
	for _, l := range run.Layers {
		if l.Prune != nil {
			pruned++
		}
		if l.Compensate != nil {
			terms++
			factors += l.Compensate.Bytes
		}
	}
	if removed, weights := report.Pruned(run); pruned > 0 && weights > 0 {
		p("%-10s %.1f %% of the compressed layers' weights, in %d of %d layers", "pruned",
			100*float64(removed)/float64(weights), pruned, len(run.Layers))
	}
	if terms > 0 {
		p("%-10s terms in %d of %d layers, %s of factors", "low-rank", terms, len(run.Layers), bytesText(factors))
	}
}

// printWeightErrors says what is known of layers that no data was used for.
func printWeightErrors(p func(string, ...any), run *record.Run) {
	var worst *record.Layer
	var sum float64
	n := 0
	for i := range run.Layers {
		l := &run.Layers[i]
		if l.RelativeWeightError == nil {
			continue
		}
		n++
		sum += *l.RelativeWeightError
		if worst == nil || *l.RelativeWeightError > *worst.RelativeWeightError {
			worst = l
		}
	}
	if n > 0 {
		p("%-10s relative error of the weights themselves %.3g on average over %d layers, at most %.3g (%s)", "weights", sum/float64(n), n, *worst.RelativeWeightError, worst.Name)
	}
}

func printLanguage(p func(string, ...any), l *record.LanguageEvaluation) {
	p("%-10s %.4f → %.4f nats per token over %d tokens (perplexity %.3f → %.3f)", "loss",
		l.Original.Loss, l.Compressed.Loss, l.Tokens, l.Original.Perplexity, l.Compressed.Perplexity)
	interval := ""
	if l.Interval != nil {
		tied := ""
		if l.Tied {
			tied = ", tied"
		}
		interval = fmt.Sprintf(" (95 %% interval %.4f … %.4f%s)", l.Interval[0], l.Interval[1], tied)
	}
	kl := fmt.Sprintf("KL %.4f", l.KL)
	if l.KLBounds != nil {
		kl = fmt.Sprintf("KL between %.4f and %.4f", l.KLBounds[0], l.KLBounds[1])
	}
	p("%-10s %.4f nats added%s, %s, %.2f %% of tokens agree", "outputs", l.LossIncrease, interval, kl, l.Agreement)
}

func printOutputs(p func(string, ...any), e *record.Evaluation) {
	o := e.Outputs
	if o.RelativeError != nil {
		p("%-10s relative squared error %.3g of the features, %d rows of %d samples", "outputs", *o.RelativeError, o.Rows, e.Samples)
		return
	}
	what := "tokens"
	if o.Task == "sequence_classes" {
		what = "sequences"
	}
	p("%-10s KL %.4f over %d %s, %.2f %% agree", "outputs", *o.KL, o.Rows, what, *o.Agreement)
}

func fallbackCount(run *record.Run) int {
	n := 0
	for _, l := range run.Layers {
		if len(l.Fallbacks) > 0 {
			n++
		}
	}
	return n
}

// bytesText writes a size as people read it: KB is 1,000 bytes.
func bytesText(n int64) string {
	switch f := float64(n); {
	case n < 1000:
		return fmt.Sprintf("%d B", n)
	case n < 1_000_000:
		return fmt.Sprintf("%.1f KB", f/1e3)
	case n < 1_000_000_000:
		return fmt.Sprintf("%.1f MB", f/1e6)
	default:
		return fmt.Sprintf("%.2f GB", f/1e9)
	}
}
