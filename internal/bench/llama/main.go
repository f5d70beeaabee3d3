// Command llama measures one compression of a Llama of real shapes and random
// weights, as `fettle random-llama` writes it: the time of each stage beside the
// products that it cannot avoid, and peak memory beside what must be held.
//
//	go run ./internal/bench/llama -model FOLDER
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/pprof"

	"github.com/fettle-dev/fettle/pipeline"
)

func main() {
	folder := flag.String("model", "build/llama", "folder that `fettle random-llama` wrote")
	samples := flag.Int("samples", 16, "calibration sequences")
	length := flag.Int("length", 512, "tokens of a sequence")
	profile := flag.String("cpuprofile", "", "write a CPU profile there")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := bench(ctx, *folder, *samples, *length, *profile); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

const recipe = `
version: 1
model: {path: %q}
calibration: {data: %q, format: u16, samples: %d, text: {mode: packed, length: %d}}
rules:
  - {match: lm_head}
  - match: "*"
    steps: [{quantize: {method: gptq, bits: 4, group_size: 128}}]
output: {path: %q}
`

func bench(ctx context.Context, folder string, samples, length int, profile string) error {
	temp, err := os.MkdirTemp("", "fettle-bench-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp)
	r, err := pipeline.ParseRecipe(fmt.Appendf(nil, recipe, folder, filepath.Join(folder, "ids.u16"), samples, length, filepath.Join(temp, "out")), "")
	if err != nil {
		return err
	}
	if profile != "" {
		f, err := os.Create(profile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	var before [2]float64
	if before[0], before[1], err = peaks(ctx); err != nil {
		return err
	}
	run, err := pipeline.Run(ctx, r, pipeline.Options{})
	if err != nil {
		return err
	}
	return printTables(ctx, run, before, folder, int64(samples)*int64(length))
}
