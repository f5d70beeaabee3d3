// Command resnet measures compression of a real CIFAR ResNet and prints the
// tables of docs/benchmarks.md. It needs the model and the images, which are
// not part of the project:
//
//	go run ./internal/bench/resnet -data ../shared/data [-model resnet20|resnet56] [-only "3 bits"] [-draws 5]
//
// Methods are given as a recipe's quantize step has them, beside bits:
//
//	go run ./internal/bench/resnet -methods 'nearest=method: nearest; GPTQ=method: gptq, act_order: true'
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

	"github.com/fettle-dev/fettle/internal/bench/methods"
	"github.com/fettle-dev/fettle/pipeline"
	"github.com/fettle-dev/fettle/record"
)

func main() {
	var b runner
	flag.StringVar(&b.data, "data", "../shared/data", "folder of real models and data")
	name := flag.String("model", "resnet20", "resnet20 or resnet56")
	list := flag.String("methods", methods.Default, "entries of label=keys of the quantize step, divided by ;")
	flag.StringVar(&b.only, "only", "", `run only settings whose name, such as "3 bits, GPTQ, aligned", holds this`)
	flag.IntVar(&b.draws, "draws", 1, "calibration draws: 1 takes the first 1,024 images, N > 1 draws them with seeds 1 to N")
	flag.IntVar(&b.samples, "samples", 1024, "calibration images")
	flag.BoolVar(&b.tune, "tune", false, "evaluate on the last 1,017 images of train5085 in place of the test images, to choose defaults by")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := b.bench(ctx, *name, *list); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

type runner struct {
	data, only, model, temp string
	draws, count, samples   int
	tune                    bool
}

func (b *runner) bench(ctx context.Context, name, list string) error {
	columns, err := methods.Parse(list)
	if err != nil {
		return err
	}
	models, err := filepath.Glob(filepath.Join(b.data, "resnet-cifar10", name+"-*.th"))
	if err != nil || len(models) != 1 {
		return fmt.Errorf("no model %s in %s", name, b.data)
	}
	b.model = models[0]
	if b.temp, err = os.MkdirTemp("", "fettle-bench-*"); err != nil {
		return err
	}
	defer os.RemoveAll(b.temp)
	fmt.Println("| bits | method | KL | standard error | largest | top-1 | predictions changed | bytes | solver s | all s |")
	fmt.Println("|---|---|---|---|---|---|---|---|---|---|")
	for _, bits := range []int{4, 3, 2} {
		for _, m := range columns {
			if !strings.Contains(fmt.Sprintf("%d bits, %s", bits, m.Label), b.only) {
				continue
			}
			if err := b.row(ctx, bits, m); err != nil {
				return err
			}
		}
	}
	return b.digests(ctx)
}

// row runs a setting with each draw and prints the means.
func (b *runner) row(ctx context.Context, bits int, m methods.Method) error {
	var kl, squares, largest, top1, changed, solver, all float64
	var bytes int64
	n := float64(b.draws)
	for draw := range b.draws {
		run, err := b.run(ctx, m.Step, bits, draw, 0)
		if err != nil {
			return fmt.Errorf("%d bits, %s: %w", bits, m.Label, err)
		}
		e := run.Evaluation
		kl += e.KL / n
		squares += e.KL * e.KL / n
		largest = max(largest, e.KL)
		top1 += e.Compressed.Top1 / n
		changed += float64(e.Changed) / n
		solver += seconds(run, "solve") / n
		all += run.Seconds / n
		bytes = run.Output.WeightBytes
	}
	deviation := "–"
	if b.draws > 1 {
		deviation = fmt.Sprintf("%.4f", math.Sqrt(max(squares-kl*kl, 0)/(n-1)))
	}
	fmt.Printf("| %d | %s | %.4f | %s | %.4f | %.2f %% | %.1f | %d | %.1f | %.1f |\n", bits, m.Label, kl, deviation, largest, top1, changed, bytes, solver, all)
	return nil
}

func (b *runner) run(ctx context.Context, step string, bits, draw, workers int) (*record.Run, error) {
	train, test := filepath.Join(b.data, "cifar10", "train5085.bin"), filepath.Join(b.data, "cifar10", "test1017.bin")
	calibration := fmt.Sprintf("subset: [0, %d]", b.samples)
	if b.draws > 1 {
		calibration = fmt.Sprintf("subset: [0, 4068], samples: %d, seed: %d", b.samples, draw+1)
	}
	evaluation := fmt.Sprintf("data: %q", test)
	if b.tune {
		evaluation = fmt.Sprintf("data: %q, subset: [4068, 5085]", train)
	}
	text := fmt.Sprintf(`version: 1
calibration: {data: %q, format: cifar10, %s}
rules: [{match: "*", steps: [{quantize: {%s, bits: %d}}]}]
evaluate: {%s, format: cifar10}
`, train, calibration, step, bits, evaluation)
	recipe, err := pipeline.ParseRecipe([]byte(text), "")
	if err != nil {
		return nil, err
	}
	b.count++
	recipe.Model.Path = b.model
	recipe.Output.Path = filepath.Join(b.temp, fmt.Sprint(b.count))
	return pipeline.Run(ctx, recipe, pipeline.Options{Workers: workers})
}

func seconds(run *record.Run, stage string) float64 {
	for _, s := range run.Stages {
		if s.Name == stage {
			return s.Seconds
		}
	}
	return 0
}

// digests runs the default method with 1, 2 and 5 workers, and prints the
// stages of the run with 2.
func (b *runner) digests(ctx context.Context) error {
	if b.only != "" {
		return nil
	}
	fmt.Println()
	for _, workers := range []int{1, 2, 5} {
		run, err := b.run(ctx, "granularity: channel", 4, 0, workers)
		if err != nil {
			return err
		}
		fmt.Printf("%d workers: digest %s, %.1f s\n", workers, run.Output.ManifestSHA256, run.Seconds)
		if workers != 2 {
			continue
		}
		fmt.Println("\n| stage | seconds | bytes |\n|---|---|---|")
		for _, st := range run.Stages {
			fmt.Printf("| %s | %.2f | %d |\n", st.Name, st.Seconds, st.Bytes)
		}
		fmt.Printf("| all | %.2f | |\n\n", run.Seconds)
	}
	return nil
}
