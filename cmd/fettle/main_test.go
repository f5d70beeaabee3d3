package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"fettle": func() { os.Exit(run(context.Background(), os.Args, os.Stdout, os.Stderr)) },
	})
}

// TestScripts runs the command as a user does. $MODELS is the project's
// testmodels folder, $DATA the folder of real models, which is not part of the
// project: scripts that need it skip without it.
func TestScripts(t *testing.T) {
	models, err := filepath.Abs("../../testmodels")
	if err != nil {
		t.Fatal(err)
	}
	data, err := filepath.Abs("../../../shared/data")
	if err != nil {
		t.Fatal(err)
	}
	files := t.TempDir()
	for name, content := range binaries {
		if err := os.WriteFile(filepath.Join(files, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			e.Setenv("MODELS", models)
			e.Setenv("FILES", files)
			e.Setenv("GGUF", filepath.Join(models, "..", "loader", "testdata", "ggml.gguf"))
			e.Setenv("DATA", data)
			e.Setenv("RECIPES", filepath.Join(models, "..", "recipes"))
			e.Setenv("FETTLE_CACHE", filepath.Join(e.WorkDir, "cache"))
			return nil
		},
		Condition: func(cond string) (bool, error) {
			switch cond {
			case "data":
				_, err := os.Stat(data)
				return err == nil, nil
			case "long":
				return os.Getenv("FETTLE_LONG") != "", nil
			case "root":
				return os.Geteuid() == 0, nil
			}
			return false, nil
		},
	})
}

// binaries are files that a text archive cannot hold; scripts find them in $FILES.
var binaries = map[string]string{
	"cut.gguf":  "GGUF\x03\x00\x00\x00\x01\x00",
	"huge.gguf": "GGUF\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x10" + strings.Repeat("\x00", 32),
	"nan.safetensors": safetensorsOf(`{"w":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}`) +
		"\x00\x00\xc0\x7f\x00\x00\x80\xff\x00\x00\x80\x3f",
	"escape.safetensors": safetensorsOf(`{"\u001b[31mred":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}`),
}

func safetensorsOf(header string) string {
	return string(binary.LittleEndian.AppendUint64(nil, uint64(len(header)))) + header
}

// TestExitCodes holds kinds of faults against the documented codes.
func TestExitCodes(t *testing.T) {
	dir := t.TempDir()
	recipe := filepath.Join(dir, "r.yaml")
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write("r.yaml", "version: 1\nrules: [{match: \"*\", steps: [{quantize: {method: nearest, bits: 4}}]}]\n")
	broken := write("broken.yaml", "version: 1\nrulez: []\n")
	junk := write("junk.pt", "this is no checkpoint")
	whole, err := os.ReadFile("../../testmodels/resnet8.th")
	if err != nil {
		t.Fatal(err)
	}
	cut := write("cut.th", string(whole[:len(whole)/2]))
	model := write("resnet8.th", string(whole))
	out := filepath.Join(dir, "out")
	for _, c := range []struct {
		want int
		args []string
	}{
		{0, []string{"--help"}},
		{0, []string{"version"}},
		{2, []string{"frobnicate"}},
		{2, []string{"compress", model, "--out", out}},
		{2, []string{"compress", model, "--recipe", broken, "--out", out}},
		{2, []string{"compress", model, "--recipe", recipe, "--out", dir}},
		{2, []string{"compress", model, "--recipe", recipe, "--out", out, "--evaluate", "x"}},
		{3, []string{"compress", junk, "--recipe", recipe, "--out", out}},
		{3, []string{"compress", cut, "--recipe", recipe, "--out", out}},
		{3, []string{"compress", filepath.Join(dir, "absent.pt"), "--recipe", recipe, "--out", out}},
		{3, []string{"compress", model, "--recipe", recipe, "--out", filepath.Join(junk, "out"), "--no-cache"}},
		{3, []string{"compress", model, "--recipe", recipe, "--out", out, "--cache", filepath.Join(junk, "cache")}},
		{3, []string{"gate", out, "--max-size", "1KB"}},
		{0, []string{"compress", model, "--recipe", recipe, "--out", out, "--no-cache"}},
		{0, []string{"gate", out, "--max-size", "1MB"}},
		{1, []string{"gate", out, "--max-size", "1KB"}},
		{2, []string{"gate", out}},
		{0, []string{"scan", model}},
		{3, []string{"scan", junk}},
		{3, []string{"scan", filepath.Join(dir, "absent.pt")}},
		{1, []string{"scan", write("evil.pkl", "cos\nsystem\n(tR.")}},
		{2, []string{"scan"}},
		{2, []string{"gate", out, "--max-accuracy-drop", "1"}},
		{0, []string{"inspect", out}},
		{3, []string{"inspect", junk}},
		{2, []string{"inspect", model, "--sort", "x"}},
	} {
		var stdout, stderr bytes.Buffer
		got := run(context.Background(), append([]string{"fettle"}, c.args...), &stdout, &stderr)
		if got != c.want {
			t.Errorf("%v: exit code %d, want %d\n%s", c.args, got, c.want, stderr.String())
		}
		if lines := bytes.Count(stderr.Bytes(), []byte("\n")); got > exitBudget && lines != 1 {
			t.Errorf("%v: %d lines on standard error:\n%s", c.args, lines, stderr.String())
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 7 {
		t.Errorf("left behind: %v", entries)
	}
}

// TestInterrupt cancels a run while it solves: it ends within a second, with
// its own exit code, and leaves nothing half-written.
func TestInterrupt(t *testing.T) {
	dir := t.TempDir()
	recipe := filepath.Join(dir, "r.yaml")
	models, err := filepath.Abs("../../testmodels")
	if err != nil {
		t.Fatal(err)
	}
	text := "version: 1\nmodel: {input: {shape: [1, 16, 16]}}\ncalibration: {data: " + models + "/glyphs-calibration.safetensors, format: safetensors}\n" +
		"rules: [{match: \"*\", steps: [{quantize: {method: adaround, bits: 4, adaround: {steps: 100000}}}]}]\n"
	if err := os.WriteFile(recipe, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var stderr bytes.Buffer
	code := make(chan int, 1)
	go func() {
		code <- run(ctx, []string{"fettle", "compress", models + "/resnet8.th", "--recipe", recipe, "--out", filepath.Join(dir, "out"), "--no-cache"}, io.Discard, &stderr)
	}()
	time.Sleep(700 * time.Millisecond)
	cancel()
	began := time.Now()
	if got := <-code; got != exitInterrupted {
		t.Errorf("exit code %d\n%s", got, stderr.String())
	}
	if d := time.Since(began); d > time.Second {
		t.Errorf("took %v to stop", d)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}
}
