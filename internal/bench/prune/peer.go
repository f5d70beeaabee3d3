package main

import (
	"bufio"
	"context"
	_ "embed"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"gonum.org/v1/gonum/blas/blas64"
)

//go:embed admm.py
var script string

// findPython returns a Python that has torch, and torch's version; "" where none
// has.
func findPython(ctx context.Context) (path, version string) {
	for _, path := range []string{"python3", "/usr/bin/python3"} {
		out, err := exec.CommandContext(ctx, path, "-c", "import numpy, torch; print(torch.__version__)").Output()
		if err == nil {
			return path, strings.TrimSpace(string(out))
		}
	}
	return "", ""
}

// peer is a running admm.py with one layer.
type peer struct {
	command *exec.Cmd
	in      io.WriteCloser
	out     *bufio.Reader
	folder  string
}

// tuning keeps threads of OpenMP that wait from spinning where others compute, and
// the memory of large tensors for the next ones: PyTorch is faster so.
var tuning = []string{"OMP_WAIT_POLICY=PASSIVE", "MALLOC_MMAP_THRESHOLD_=8589934592", "MALLOC_TRIM_THRESHOLD_=17179869184"}

// startPeer writes the layer to files and starts the peer on it.
func startPeer(ctx context.Context, python string, threads int, gram, weight blas64.General, sparsity float64) (p *peer, err error) {
	p = &peer{}
	if p.folder, err = os.MkdirTemp("", "bench-prune"); err != nil {
		return nil, err
	}
	start := map[string]any{"rows": weight.Rows, "cols": weight.Cols, "sparsity": sparsity, "threads": threads}
	for name, m := range map[string]blas64.General{"gram": gram, "weight": weight} {
		path := filepath.Join(p.folder, name)
		start[name] = path
		if err := writeFloats(path, m); err != nil {
			return nil, err
		}
	}
	p.command = exec.CommandContext(ctx, python, "-c", script)
	p.command.Stderr = os.Stderr
	p.command.Env = append(os.Environ(), tuning...)
	for _, name := range []string{"OMP", "OPENBLAS", "MKL"} {
		p.command.Env = append(p.command.Env, fmt.Sprintf("%s_NUM_THREADS=%d", name, threads))
	}
	if p.in, err = p.command.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.out = bufio.NewReader(out)
	if err := p.command.Start(); err != nil {
		return nil, err
	}
	line, err := json.Marshal(start)
	if err != nil {
		return nil, err
	}
	if _, err := p.ask(string(line)); err != nil { // the answer is "ready"
		p.stop()
		return nil, fmt.Errorf("PyTorch did not start: %w", err)
	}
	return p, nil
}

func (p *peer) ask(line string) (string, error) {
	if _, err := io.WriteString(p.in, line+"\n"); err != nil {
		return "", err
	}
	answer, err := p.out.ReadString('\n')
	return strings.TrimSpace(answer), err
}

// prune runs the recipe once and writes the pruned weights to w.
func (p *peer) prune(w blas64.General) (seconds float64, err error) {
	path := filepath.Join(p.folder, "result")
	answer, err := p.ask(path)
	if err != nil {
		return 0, fmt.Errorf("PyTorch: %w", err)
	}
	if seconds, err = strconv.ParseFloat(answer, 64); err != nil {
		return 0, err
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	if len(data) != 4*len(w.Data) {
		return 0, fmt.Errorf("PyTorch wrote %d bytes, want %d", len(data), 4*len(w.Data))
	}
	for i := range w.Data {
		w.Data[i] = float64(math.Float32frombits(binary.LittleEndian.Uint32(data[4*i:])))
	}
	return seconds, nil
}

// stop ends the peer. What it says then is of no use: every answer has been read,
// or a fault reported.
func (p *peer) stop() {
	_ = p.in.Close()
	_ = p.command.Wait()
	_ = os.RemoveAll(p.folder)
}

func writeFloats(path string, m blas64.General) error {
	data := make([]byte, 4*len(m.Data))
	for i, v := range m.Data {
		binary.LittleEndian.PutUint32(data[4*i:], math.Float32bits(float32(v)))
	}
	return os.WriteFile(path, data, 0o600)
}
