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

// findPython returns a Python that has torch and numpy, and torch's version;
// "" where there is none.
func findPython(ctx context.Context) (python, version string) {
	for _, python := range []string{"python3", "/usr/bin/python3"} {
		out, err := exec.CommandContext(ctx, python, "-c", "import numpy, torch; print(torch.__version__)").Output()
		if err == nil {
			return python, strings.TrimSpace(string(out))
		}
	}
	return "", ""
}

// peer is a running forward.py with a network's weights.
type peer struct {
	command *exec.Cmd
	in      io.WriteCloser
	out     *bufio.Reader
}

// startPeer starts the peer with so many threads. The number of OpenBLAS's can
// only be given by its environment.
func startPeer(ctx context.Context, python string, n *network, weights string, threads int) (*peer, error) {
	start, err := json.Marshal(map[string]any{
		"config": json.RawMessage(n.config), "tensors": n.order, "weights": weights, "ids": n.sequences, "threads": threads,
	})
	if err != nil {
		return nil, err
	}
	p := &peer{command: exec.CommandContext(ctx, python, "-c", script)}
	p.command.Stderr = os.Stderr
	p.command.Env = os.Environ()
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
	if answer, err := p.ask(string(start)); err != nil || answer != "ready" {
		p.stop()
		return nil, fmt.Errorf("PyTorch did not start: %q, %w", answer, err)
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
