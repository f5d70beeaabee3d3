// Command resnet measures compression of a real CIFAR ResNet and prints the
// tables of docs/benchmarks.md. It needs the model and the images, which are
// not part of the project:
//
//	go run ./internal/bench/resnet -data ../shared/data [-model resnet20|resnet56] [-draws 1]
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"

	"github.com/fettle-dev/fettle/pipeline"
	"github.com/fettle-dev/fettle/record"
)

func main() {
	data := flag.String("data", "../shared/data", "folder of real models and data")
	name := flag.String("model", "resnet20", "resnet20 or resnet56")
	draws := flag.Int("draws", 1, "calibration draws: images 0…, then 1024…, 2048…")
	only := flag.String("only", "", "run only settings whose name holds this")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := bench(ctx, *data, *name, *draws, *only); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

type setting struct {
	name  string
	step  string // keys of the quantize step beside bits
	label string
}

var settings = []setting{
	{"nearest", "method: nearest", "nearest"},
	{"gptq", "method: gptq, align: false", "GPTQ"},
	{"gptq-aligned", "method: gptq", "GPTQ, aligned"},
	{"adaround", "method: adaround, align: false", "AdaRound"},
	{"adaround-aligned", "method: adaround", "AdaRound, aligned"},
}

func bench(ctx context.Context, data, name string, draws int, only string) error {
	models, err := filepath.Glob(filepath.Join(data, "resnet-cifar10", name+"-*.th"))
	if err != nil || len(models) != 1 {
		return fmt.Errorf("no model %s in %s", name, data)
	}
	temp, err := os.MkdirTemp("", "fettle-bench-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp)
	b := &runner{data: data, model: models[0], temp: temp}
	fmt.Println("| weights | bits | top-1 | KL | changed | interval of the drop | bytes | solver s |")
	fmt.Println("|---|---|---|---|---|---|---|---|")
	for _, bits := range []int{4, 3, 2} {
		for _, s := range settings {
			if !strings.Contains(fmt.Sprintf("%s-w%d", s.name, bits), only) {
				continue
			}
			for draw := range draws {
				run, err := b.run(ctx, s, bits, draw, 0)
				if err != nil {
					return err
				}
				printRow(s, bits, run)
			}
		}
	}
	return b.digests(ctx, only)
}

type runner struct {
	data, model, temp string
	count             int
}

func (b *runner) run(ctx context.Context, s setting, bits, draw, workers int) (*record.Run, error) {
	first := 1024 * draw
	text := fmt.Sprintf(`version: 1
calibration: {data: %q, format: cifar10, subset: [%d, %d]}
rules: [{match: "*", steps: [{quantize: {%s, bits: %d}}]}]
evaluate: {data: %q, format: cifar10}
`, filepath.Join(b.data, "cifar10", "train5085.bin"), first, first+1024, s.step, bits,
		filepath.Join(b.data, "cifar10", "test1017.bin"))
	recipe, err := pipeline.ParseRecipe([]byte(text), "")
	if err != nil {
		return nil, err
	}
	b.count++
	recipe.Model.Path = b.model
	recipe.Output.Path = filepath.Join(b.temp, fmt.Sprint(b.count))
	return pipeline.Run(ctx, recipe, pipeline.Options{Workers: workers})
}

func printRow(s setting, bits int, run *record.Run) {
	e := run.Evaluation
	fmt.Printf("| %s | %d | %.2f %% | %.4f | %d | %.2f … %.2f | %d | %.1f |\n", s.label, bits,
		e.Compressed.Top1, e.KL, e.Changed, e.Interval[0], e.Interval[1], run.Output.WeightBytes, seconds(run, "solve"))
}

func seconds(run *record.Run, stage string) float64 {
	for _, s := range run.Stages {
		if s.Name == stage {
			return s.Seconds
		}
	}
	return 0
}

// digests runs one setting with 1, 2 and 5 workers, and prints the stages of
// the run with 2.
func (b *runner) digests(ctx context.Context, only string) error {
	s := settings[len(settings)-1]
	if !strings.Contains(s.name+"-w4-digests", only) {
		return nil
	}
	fmt.Println()
	for _, workers := range []int{1, 2, 5} {
		run, err := b.run(ctx, s, 4, 0, workers)
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
