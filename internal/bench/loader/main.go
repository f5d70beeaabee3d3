// Command loader times opening, listing and streaming checkpoints of every kind,
// made in a temporary folder, against a plain read of the same bytes, and against
// torch.load where python3 or /usr/bin/python3 has torch.
//
//	go run ./internal/bench/loader [-kind zip] [-size 2] [-rounds 5]
//
// All reads come from the page cache. Turns alternate; a ratio is the median of
// those of rounds. Memory is the peak of a process of its own.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/loader"
)

func main() {
	match := flag.String("kind", "", "only kinds whose name holds this")
	size := flag.Float64("size", 2, "GB of each file")
	rounds := flag.Int("rounds", 5, "rounds for each line")
	child := flag.String("child", "", "for the program itself: what to do with the file named, open or stream")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	err := fmt.Errorf("size %g, %d rounds: want more than 0", *size, *rounds)
	switch {
	case *child != "":
		err = runChild(ctx, *child, flag.Arg(0))
	case *size > 0 && *rounds > 0:
		err = bench(ctx, *match, int64(*size*1e9), *rounds)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func bench(ctx context.Context, match string, size int64, rounds int) error {
	python, version := findPython(ctx)
	other := "no python3 with torch was found"
	if python != "" {
		other = "PyTorch " + version + " of " + python
	}
	fmt.Printf("%s; %d processors, %s/%s, %s; files of %.1f GB, %d rounds\n\n",
		other, runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, runtime.Version(), float64(size)/1e9, rounds)
	fmt.Println("| file | open and list | its peak | stream as f32, GB/s of file | least–most | of plain read | of plain read, 1 MiB | conversion alone | its peak | torch.load GB/s | its peak |")
	fmt.Println("|---|---|---|---|---|---|---|---|---|---|---|")
	for _, k := range kinds {
		if !strings.Contains(k.name, match) {
			continue
		}
		if err := benchKind(ctx, k, size, rounds, python); err != nil {
			return fmt.Errorf("%s: %w", k.name, err)
		}
	}
	return nil
}

func benchKind(ctx context.Context, k kind, size int64, rounds int, python string) error {
	folder, err := os.MkdirTemp("", "bench-loader")
	if err != nil {
		return err
	}
	defer os.RemoveAll(folder)
	path := filepath.Join(folder, "model"+k.ending)
	if err := k.write(path, size); err != nil {
		return err
	}
	if _, err := plain(path, 1<<20); err != nil { // into the page cache
		return err
	}
	var rates, ofLarge, ofSmall, opens []float64
	for range rounds {
		small, err := plain(path, 1<<20)
		if err != nil {
			return err
		}
		large, err := plain(path, tensorElements*k.dtype.Size())
		if err != nil {
			return err
		}
		open, streamed, err := stream(ctx, path)
		if err != nil {
			return err
		}
		opens = append(opens, open.Seconds())
		rates = append(rates, float64(size)/1e9/streamed.Seconds())
		ofLarge, ofSmall = append(ofLarge, large.Seconds()/streamed.Seconds()), append(ofSmall, small.Seconds()/streamed.Seconds())
	}
	opened, err := startChild(ctx, "open", path)
	if err != nil {
		return err
	}
	read, err := startChild(ctx, "stream", path)
	if err != nil {
		return err
	}
	conversion, torch := "", "| |"
	if k.dtype != dtype.F32 {
		if conversion, err = convert(k.dtype, rounds); err != nil {
			return err
		}
	}
	if python != "" && k.ending == ".pt" {
		if torch, err = torchLoad(ctx, python, path, size, rounds); err != nil {
			return err
		}
	}
	slices.Sort(rates)
	fmt.Printf("| %s | %.1f ms | %d MB | %.2f | %.2f–%.2f | %.2f | %.2f | %s | %d MB %s\n", k.name, 1e3*median(opens), opened.Peak>>20,
		median(rates), rates[0], rates[len(rates)-1], median(ofLarge), median(ofSmall), conversion, read.Peak>>20, torch)
	return nil
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

// plain reads a file from its start to its end into one buffer.
func plain(path string, buffer int) (time.Duration, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	buf := make([]byte, buffer)
	clear(buf) // its pages are there before the clock starts
	start := time.Now()
	for {
		_, err := io.ReadFull(f, buf)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return time.Since(start), nil
		}
		if err != nil {
			return 0, err
		}
	}
}

// stream opens a checkpoint and reads every tensor once, as float32, into one
// buffer.
func stream(ctx context.Context, path string) (open, read time.Duration, err error) {
	start := time.Now()
	c, err := loader.Open(ctx, path)
	if err != nil {
		return 0, 0, err
	}
	defer c.Close()
	tensors := c.Tensors()
	open = time.Since(start)
	buf := make([]float32, tensorElements)
	clear(buf)
	start = time.Now()
	for _, t := range tensors {
		if err := c.ReadFloat32(t.Name, buf[:t.Elements()]); err != nil {
			return 0, 0, err
		}
	}
	return open, time.Since(start), nil
}

// convert says at what rate bytes in memory become float32 in memory.
func convert(d dtype.DType, rounds int) (string, error) {
	src, dst := make([]byte, tensorElements*d.Size()), make([]float32, tensorElements)
	clear(dst)
	var rates []float64
	for range 4 * rounds {
		start := time.Now()
		if err := d.ToFloat32(dst, src); err != nil {
			return "", err
		}
		rates = append(rates, float64(len(src))/1e9/time.Since(start).Seconds())
	}
	return fmt.Sprintf("%.2f GB/s", median(rates)), nil
}

// result is what a child prints.
type result struct{ Peak int64 }

func startChild(ctx context.Context, what, path string) (r result, err error) {
	self, err := os.Executable()
	if err != nil {
		return r, err
	}
	out, err := exec.CommandContext(ctx, self, "-child", what, path).Output()
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal(out, &r)
}

func runChild(ctx context.Context, what, path string) error {
	if what == "open" {
		c, err := loader.Open(ctx, path)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.Tensors()
	} else if _, _, err := stream(ctx, path); err != nil {
		return err
	}
	peak, err := peakMemory()
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(result{peak})
}

// peakMemory returns the peak resident memory of this process; 0 where the system
// does not say.
func peakMemory() (int64, error) {
	status, err := os.ReadFile("/proc/self/status")
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	var kb int64
	for s := bufio.NewScanner(bytes.NewReader(status)); s.Scan(); {
		if text, ok := strings.CutPrefix(s.Text(), "VmHWM:"); ok {
			_, err = fmt.Sscan(text, &kb)
		}
	}
	return kb << 10, err
}

// findPython returns a Python that has torch, and torch's version; "" where none
// has.
func findPython(ctx context.Context) (path, version string) {
	for _, path := range []string{"python3", "/usr/bin/python3"} {
		out, err := exec.CommandContext(ctx, path, "-c", "import torch; print(torch.__version__)").Output()
		if err == nil {
			return path, strings.TrimSpace(string(out))
		}
	}
	return "", ""
}

const torchScript = `
import resource, sys, time, torch
start = time.perf_counter()
state = torch.load(sys.argv[1], map_location="cpu")
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
`

// torchLoad says how fast torch.load is, and what memory it takes. It holds the
// whole model then.
func torchLoad(ctx context.Context, python, path string, size int64, rounds int) (string, error) {
	var rates []float64
	var kb int64
	for range rounds {
		out, err := exec.CommandContext(ctx, python, "-c", torchScript, path).Output()
		if err != nil {
			return "", err
		}
		var seconds float64
		if _, err := fmt.Sscan(string(out), &seconds, &kb); err != nil {
			return "", err
		}
		rates = append(rates, float64(size)/1e9/seconds)
	}
	return fmt.Sprintf("| %.2f | %d MB |", median(rates), kb>>10), nil
}
