// Command steps measures any steps of a recipe on real models and prints a table
// of docs/benchmarks.md. It needs the models and their data, which are not part of
// the project:
//
//	go run ./internal/bench/steps -data ../shared/data -model resnet20 -over 0.5,0.9 \
//		-steps 'magnitude=[{prune: {method: magnitude, sparsity: $X}}]; ADMM=[{prune: {sparsity: $X}}]'
package main

import (
	"context"
	"flag"
	"fmt"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"strings"

	"github.com/fettle-dev/fettle/internal/bench/subject"
	"github.com/fettle-dev/fettle/pipeline"
	"github.com/fettle-dev/fettle/record"
)

func main() {
	var b runner
	flag.StringVar(&b.data, "data", "../shared/data", "folder of real models and data")
	flag.StringVar(&b.model, "model", "resnet20", "resnet20, resnet56, mnist-mlp4, mnist-mlp2, llm-stories260k or llm-tinystories-656k")
	list := flag.String("steps", "", "entries of label=list of steps, divided by ; with $X for the values of -over")
	over := flag.String("over", "", "values of $X, divided by commas")
	flag.IntVar(&b.draws, "draws", 1, "calibration draws: 1 takes the first samples, N > 1 draws them with seeds 1 to N")
	flag.IntVar(&b.samples, "samples", 1024, "calibration images of a ResNet; language models take 128 documents")
	flag.BoolVar(&b.tune, "tune", false, "evaluate on calibration data that is left out, to choose defaults by")
	flag.StringVar(&b.sequential, "sequential", "value", "value, or none: every layer sees the original's inputs, so that methods' layer errors can be compared")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := b.bench(ctx, *list, strings.Split(*over, ",")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

type runner struct {
	data, model, temp string
	sequential        string
	draws, count      int
	samples           int
	tune              bool
}

func (b *runner) bench(ctx context.Context, list string, over []string) (err error) {
	if b.temp, err = os.MkdirTemp("", "fettle-bench-*"); err != nil {
		return err
	}
	defer os.RemoveAll(b.temp)
	columns := 10
	if subject.Language(b.model) {
		columns = 9
		fmt.Println("| $X | steps | nats added | ± | KL | bytes | mean layer error | solver s | all s |")
	} else {
		fmt.Println("| $X | steps | top-1 | ± | KL | predictions changed | bytes | mean layer error | solver s | all s |")
	}
	fmt.Println(strings.Repeat("|---", columns) + "|")
	for _, x := range over {
		for entry := range strings.SplitSeq(list, ";") {
			label, steps, found := strings.Cut(entry, "=")
			if !found {
				return fmt.Errorf("steps %q: want label=list of steps", entry)
			}
			if err := b.row(ctx, x, strings.TrimSpace(label), strings.ReplaceAll(steps, "$X", x)); err != nil {
				return fmt.Errorf("%s, %s: %w", x, label, err)
			}
		}
	}
	return nil
}

// row runs steps with each draw and prints the means, and the standard error of
// KL or, of a language model, of the nats added; of a single draw, half the paired
// interval over documents or of top-1.
func (b *runner) row(ctx context.Context, x, label, steps string) error {
	var runs []*record.Run
	for draw := range b.draws {
		run, err := b.run(ctx, steps, draw)
		if err != nil {
			return err
		}
		runs = append(runs, run)
	}
	mean := func(of func(r *record.Run) float64) (m, deviation float64) {
		for _, r := range runs {
			m += of(r) / float64(len(runs))
		}
		for _, r := range runs {
			deviation += (of(r) - m) * (of(r) - m)
		}
		n := float64(len(runs))
		return m, math.Sqrt(deviation / max(1, n*(n-1)))
	}
	errors, _ := mean(layerError)
	solver, _ := mean(func(r *record.Run) float64 { return seconds(r, "solve") })
	all, _ := mean(func(r *record.Run) float64 { return r.Seconds })
	bytes := runs[0].Output.WeightBytes
	first := runs[0].Evaluation
	if l := first.Language; l != nil {
		added, spread := mean(func(r *record.Run) float64 { return r.Evaluation.Language.LossIncrease })
		kl, _ := mean(func(r *record.Run) float64 { return r.Evaluation.Language.KL })
		if len(runs) == 1 && l.Interval != nil {
			spread = (l.Interval[1] - l.Interval[0]) / 2
		}
		fmt.Printf("| %s | %s | %.4f | %.4f | %.4f | %d | %.4f | %.1f | %.1f |\n", x, label, added, spread, kl, bytes, errors, solver, all)
		return nil
	}
	top1, _ := mean(func(r *record.Run) float64 { return r.Evaluation.Compressed.Top1 })
	kl, spread := mean(func(r *record.Run) float64 { return r.Evaluation.KL })
	changed, _ := mean(func(r *record.Run) float64 { return float64(r.Evaluation.Changed) })
	plus := fmt.Sprintf("%.4f KL", spread)
	if len(runs) == 1 {
		plus = fmt.Sprintf("%.2f points", (first.Interval[1]-first.Interval[0])/2)
	}
	fmt.Printf("| %s | %s | %.2f %% | %s | %.4f | %.1f | %d | %.4f | %.1f | %.1f |\n", x, label, top1, plus, kl, changed, bytes, errors, solver, all)
	return nil
}

// layerError is the mean of the layers' relative errors.
func layerError(r *record.Run) float64 {
	sum, n := 0.0, 0
	for _, l := range r.Layers {
		if l.RelativeError != nil {
			sum += *l.RelativeError
			n++
		}
	}
	return sum / max(1, float64(n))
}

func (b *runner) run(ctx context.Context, steps string, draw int) (*record.Run, error) {
	on, err := subject.Find(b.data, b.model, subject.Options{Images: b.samples, Documents: 128, Tune: b.tune})
	if err != nil {
		return nil, err
	}
	if b.draws > 1 {
		on.Calibration += fmt.Sprintf(", seed: %d", draw+1)
	}
	network := ""
	if on.Network != "" {
		network = fmt.Sprintf("model: {network: %s}\n", on.Network)
	}
	recipe, err := pipeline.ParseRecipe(fmt.Appendf(nil, "version: 1\n"+network+"sequential: %s\ncalibration: {%s}\nrules: [{match: \"*\", steps: %s}]\nevaluate: {%s}\n", b.sequential, on.Calibration, steps, on.Evaluation), "")
	if err != nil {
		return nil, err
	}
	b.count++
	recipe.Model.Path = on.Model
	recipe.Output.Path = filepath.Join(b.temp, fmt.Sprint(b.count))
	return pipeline.Run(ctx, recipe, pipeline.Options{Cache: filepath.Join(b.temp, "cache")})
}

func seconds(run *record.Run, stage string) float64 {
	for _, s := range run.Stages {
		if s.Name == stage {
			return s.Seconds
		}
	}
	return 0
}
