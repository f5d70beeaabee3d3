package main

import (
	"bufio"
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

//go:embed forward.py
var script string

// python is a Python that has torch and numpy; its path is "" where none has.
type python struct {
	path, version string   // version is torch's
	environment   []string // added to this process's
}

func findPython(ctx context.Context) python {
	for _, path := range []string{"python3", "/usr/bin/python3"} {
		out, err := exec.CommandContext(ctx, path, "-c", "import numpy, torch; print(torch.__version__)").Output()
		if err == nil {
			return python{path: path, version: strings.TrimSpace(string(out)), environment: tuning}
		}
	}
	return python{}
}

// peer is a running forward.py with a network's weights.
type peer struct {
	command *exec.Cmd
	in      io.WriteCloser
	out     *bufio.Reader
}

// tuning is what makes PyTorch faster than it is by default: threads of OpenMP
// that wait do not spin where those of OpenBLAS compute, and the memory of large
// tensors is kept for the next ones.
var tuning = []string{"OMP_WAIT_POLICY=PASSIVE", "MALLOC_MMAP_THRESHOLD_=8589934592", "MALLOC_TRIM_THRESHOLD_=17179869184"}

// startPeer starts the peer with so many threads. The number of OpenBLAS's can
// only be given by its environment.
func startPeer(ctx context.Context, p python, n *network, weights string, threads int) (*peer, error) {
	start, err := json.Marshal(map[string]any{
		"config": json.RawMessage(n.config), "tensors": n.order, "weights": weights, "ids": n.sequences, "threads": threads,
	})
	if err != nil {
		return nil, err
	}
	c := exec.CommandContext(ctx, p.path, "-c", script)
	c.Stderr = os.Stderr
	c.Env = append(os.Environ(), p.environment...)
	for _, name := range []string{"OMP", "OPENBLAS", "MKL"} {
		c.Env = append(c.Env, fmt.Sprintf("%s_NUM_THREADS=%d", name, threads))
	}
	in, err := c.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := c.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.Start(); err != nil {
		return nil, err
	}
	other := &peer{command: c, in: in, out: bufio.NewReader(out)}
	if _, err := other.ask(string(start)); err != nil { // the answer is "ready"
		other.stop()
		return nil, fmt.Errorf("PyTorch did not start: %w", err)
	}
	return other, nil
}

func (p *peer) ask(line string) (string, error) {
	if _, err := io.WriteString(p.in, line+"\n"); err != nil {
		return "", err
	}
	answer, err := p.out.ReadString('\n')
	return strings.TrimSpace(answer), err
}

// pass runs one pass and returns how long it took. With a path the result is
// written there.
func (p *peer) pass(what, path string) (time.Duration, error) {
	answer, err := p.ask(strings.TrimSpace(what + " " + path))
	if err != nil {
		return 0, fmt.Errorf("PyTorch: %w", err)
	}
	seconds, err := strconv.ParseFloat(answer, 64)
	return time.Duration(seconds * float64(time.Second)), err
}

// result runs one pass and returns what it computed.
func (p *peer) result(what, folder string) ([]float32, error) {
	path := filepath.Join(folder, "result")
	if _, err := p.pass(what, path); err != nil {
		return nil, err
	}
	defer os.Remove(path)
	return readFloats(path)
}

// stop ends the peer. What it says then is of no use: every answer has been
// read, or a fault reported.
func (p *peer) stop() {
	_ = p.in.Close()
	_ = p.command.Wait()
}
