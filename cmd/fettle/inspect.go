package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/urfave/cli/v2"

	"github.com/fettle-dev/fettle/inspect"
)

func inspectCommand() *cli.Command {
	return &cli.Command{
		Name:      "inspect",
		Usage:     "list a checkpoint's tensors, what they weigh and what their values are like",
		ArgsUsage: "PATH",
		Description: `PATH is a safetensors, PyTorch or GGUF file, a model's folder, or an output folder
of fettle compress, whose packed tensors are shown as they lie in the files.
Without --stats no tensor is read, so that any size takes no time.

  fettle inspect model.safetensors --sort size
  fettle inspect model.gguf --filter '*attn*'
  fettle inspect resnet20.th --stats
  fettle inspect OUT --json | jq '.tensors[] | select(.stats.nan > 0).name'

A group is the tensors of modules that differ in numbers alone. Of tensors that
are one and the same (tied), all names are listed and one counts. The columns of
--stats are of floating-point tensors, of their finite values: zeros is a share,
kurtosis is 3 for normal values and large where there are outliers, peak is how
far the farthest value is from the mean, in standard deviations.

The fields of --json are those of inspect.Report (go doc inspect Report). They keep
their meaning as long as "version" is 1.`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "stats", Usage: "read the tensors and describe their values"},
			&cli.BoolFlag{Name: "json", Usage: "write JSON"},
			&cli.StringFlag{Name: "sort", Value: string(inspect.ByStored), Usage: "`ORDER` of tensors: order (as stored), name, size or dtype"},
			&cli.StringFlag{Name: "filter", Usage: "list tensors whose whole names match `GLOB`, in which * is any text"},
			&cli.IntFlag{Name: "workers", DefaultText: "one for each processor", Usage: "goroutines that read tensors for --stats"},
		},
		Action: func(c *cli.Context) error {
			path, err := oneArgument(c, "PATH")
			if err != nil {
				return err
			}
			report, err := inspect.Checkpoint(c.Context, path, inspect.Options{
				Filter: c.String("filter"), Sort: inspect.Order(c.String("sort")), Stats: c.Bool("stats"), Workers: c.Int("workers"),
			})
			if err != nil {
				return err
			}
			if c.Bool("json") {
				e := json.NewEncoder(c.App.Writer)
				e.SetEscapeHTML(false)
				e.SetIndent("", "  ")
				return e.Encode(report)
			}
			return printReport(c.App.Writer, report, c.Bool("stats"))
		},
	}
}

func printReport(w io.Writer, r *inspect.Report, stats bool) error {
	out := &strings.Builder{}
	p := func(format string, args ...any) { fmt.Fprintf(out, format+"\n", args...) }
	if len(r.Tensors) > 0 {
		p("%s", tensorTable(r, stats))
	}
	if len(r.Groups) > 1 && len(r.Groups) < len(r.Tensors) {
		p("%s", totalTable("group", r.Groups))
	}
	if len(r.DTypes) > 1 {
		p("%s", totalTable("dtype", r.DTypes))
	}
	p("%-12s %s, %s of files", "format", r.Format, bytesText(r.FileBytes))
	if r.Architecture == "" {
		p("%-12s not recognised", "architecture")
	} else {
		p("%-12s %s", "architecture", printable(r.Architecture))
	}
	p("%-12s %s with %s elements, %s bytes", "tensors", thousands(int64(r.All.Tensors)), thousands(r.All.Elements), thousands(r.All.Bytes))
	if len(r.Tensors) < r.All.Tensors {
		sum := r.Listed
		p("%-12s %s with %s elements, %s bytes (%s)", "listed", thousands(int64(sum.Tensors)), thousands(sum.Elements), thousands(sum.Bytes), percent(sum.Share))
	}
	if r.Written != nil {
		p("%-12s by fettle: %s compressed weights; dense, all tensors would take %s", "written", thousands(int64(r.Written.Compressed)), bytesText(r.Written.DenseBytes))
	}
	for _, e := range r.Compressed {
		p("%-12s %s weights as %s, %s bytes for %s elements", "compressed", thousands(int64(e.Weights)), printable(e.Encoding), thousands(e.Bytes), thousands(e.Elements))
	}
	if len(r.Metadata) > 0 {
		p("%-12s %s", "metadata", metadataText(r.Metadata))
	}
	if stats {
		printOutliers(p, r)
	}
	for _, s := range r.Skipped {
		p("note: tensor %s cannot be read: %s", printable(s.Name), visible(s.Reason))
	}
	for _, note := range r.Notes {
		p("note: %s", visible(note))
	}
	_, err := io.WriteString(w, out.String())
	return err
}

// printOutliers points at what is suspect: values that are not finite, and the
// tensor with the farthest outlier.
func printOutliers(p func(string, ...any), r *inspect.Report) {
	var farthest *inspect.Tensor
	for i, t := range r.Tensors {
		if t.Stats == nil {
			continue
		}
		if t.Stats.NaN+t.Stats.Inf > 0 {
			p("warning: tensor %s has %s NaN and %s infinite values", printable(t.Name), thousands(t.Stats.NaN), thousands(t.Stats.Inf))
		}
		if farthest == nil || t.Stats.Peak > farthest.Stats.Peak {
			farthest = &r.Tensors[i]
		}
	}
	if farthest != nil && farthest.Stats.Peak > 0 {
		p("%-12s the farthest are in %s, %.1f standard deviations from the mean", "outliers", printable(farthest.Name), farthest.Stats.Peak)
	}
}

func tensorTable(r *inspect.Report, stats bool) string {
	t := newTable()
	head := table.Row{"tensor", "dtype", "shape", "bytes", "share"}
	if stats {
		head = append(head, "min", "max", "mean", "std", "zeros", "kurtosis", "peak")
	}
	finite := !slices.ContainsFunc(r.Tensors, func(t inspect.Tensor) bool { return t.Stats != nil && t.Stats.NaN+t.Stats.Inf > 0 })
	if !finite {
		head = append(head, "NaN", "Inf")
	}
	t.AppendHeader(head)
	rightFrom(t, 4, len(head))
	for _, entry := range r.Tensors {
		row := table.Row{printable(entry.Name), entry.DType, fmt.Sprint(entry.Shape), thousands(entry.Bytes), percent(entry.Share)}
		if entry.TiedTo != "" {
			row[4] = "= " + printable(entry.TiedTo)
		}
		if s := entry.Stats; s != nil && stats {
			row = append(row, figure(s.Min), figure(s.Max), figure(s.Mean), figure(s.Std), percent(s.Zeros),
				fmt.Sprintf("%.1f", s.Kurtosis), fmt.Sprintf("%.1f", s.Peak))
			if !finite {
				row = append(row, thousands(s.NaN), thousands(s.Inf))
			}
		}
		for len(row) < len(head) {
			row = append(row, "–")
		}
		t.AppendRow(row)
	}
	return t.Render() + "\n"
}

func totalTable(of string, totals []inspect.Total) string {
	t := newTable()
	t.AppendHeader(table.Row{of, "tensors", "elements", "bytes", "share"})
	rightFrom(t, 2, 5)
	for _, sum := range totals {
		t.AppendRow(table.Row{printable(sum.Name), thousands(int64(sum.Tensors)), thousands(sum.Elements), thousands(sum.Bytes), percent(sum.Share)})
	}
	return t.Render() + "\n"
}

func newTable() table.Writer {
	t := table.NewWriter()
	t.SetStyle(table.StyleLight)
	t.Style().Format.Header = text.FormatDefault
	t.Style().Options.DrawBorder = false
	return t
}

// rightFrom aligns columns from … to, counted from 1, to the right.
func rightFrom(t table.Writer, from, to int) {
	var right []table.ColumnConfig
	for n := from; n <= to; n++ {
		right = append(right, table.ColumnConfig{Number: n, Align: text.AlignRight})
	}
	t.SetColumnConfigs(right)
}

// metadataText writes few and short values, and else says how many there are.
func metadataText(metadata map[string]string) string {
	var pairs []string
	for _, key := range slices.Sorted(maps.Keys(metadata)) {
		pairs = append(pairs, printable(key)+"="+printable(metadata[key]))
	}
	if text := strings.Join(pairs, ", "); len(text) <= longest {
		return text
	}
	return fmt.Sprintf("%d keys; --json shows them", len(metadata))
}

// longest is how much of a name is printed.
const longest = 120

// printable is a name for a table: as visible has it, and shortened where it would
// fill the screen.
func printable(name string) string {
	runes := []rune(visible(name))
	if len(runes) <= longest {
		return string(runes)
	}
	return string(runes[:longest/2]) + "…" + string(runes[len(runes)-longest/2:])
}

// visible quotes text of a file that would do something to a terminal.
func visible(text string) string {
	if text == "" || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(text)
	}
	return text
}

// thousands writes a number with commas between groups of three digits.
func thousands(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func percent(share float64) string { return fmt.Sprintf("%.2f %%", 100*share) }

// figure writes a value in four digits.
func figure(v float64) string {
	if a := math.Abs(v); a != 0 && (a < 1e-4 || a >= 1e6) {
		return fmt.Sprintf("%.2e", v)
	}
	return fmt.Sprintf("%.4g", v)
}
