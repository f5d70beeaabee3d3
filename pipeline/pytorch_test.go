package pipeline_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/fettle-dev/fettle/pipeline"
)

// python returns a Python with PyTorch, or skips the test.
func python(t *testing.T) string {
	t.Helper()
	for _, name := range []string{os.Getenv("FETTLE_PYTHON"), "python3", "/usr/bin/python3"} {
		if name != "" && exec.Command(name, "-c", "import torch, numpy").Run() == nil {
			return name
		}
	}
	t.Skip("no Python with PyTorch and NumPy here (Debian: python3-torch); FETTLE_PYTHON names one")
	return ""
}

// TestPyTorchLoadsTheDenseModel compresses, and lets real PyTorch load what was
// written, strictly: it gets as many images right as fettle measured.
func TestPyTorchLoadsTheDenseModel(t *testing.T) {
	const data = "../../shared/data/"
	for _, c := range []struct{ name, model, calibration, images, shape, network, mean, std string }{
		{
			"resnet8", models + "resnet8.th", models + "glyphs-calibration.safetensors, format: safetensors",
			models + "glyphs-test.safetensors, format: safetensors", "shape: [1, 16, 16], ", "1 8,16,32 1", "0.35", "0.24",
		},
		{
			"resnet20", data + "resnet-cifar10/resnet20-12fca82f.th", data + "cifar10/train5085.bin, format: cifar10, samples: 8",
			data + "cifar10/test1017.bin, format: cifar10", "", "3 16,32,64 3", "0.485,0.456,0.406", "0.229,0.224,0.225",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := os.Stat(c.model); err != nil {
				t.Skipf("%s is not here", c.model)
			}
			interpreter := python(t)
			r, err := pipeline.ParseRecipe([]byte("version: 1\nmodel: {path: "+c.model+", input: {"+c.shape+"mean: ["+c.mean+"], std: ["+c.std+"]}}\n"+
				"calibration: {data: "+c.calibration+"}\nevaluate: {data: "+c.images+"}\noutput: {dense: [pt]}\n"+
				"rules: [{match: \"*\", steps: [{quantize: {method: gptq, bits: 3, bias_correction: true}}]}]\n"), "")
			if err != nil {
				t.Fatal(err)
			}
			r.Output.Path = filepath.Join(t.TempDir(), "out")
			run := mustRun(t, r, pipeline.Options{})
			args := append([]string{"testdata/strict.py", filepath.Join(r.Output.Path, "dense.pt")}, strings.Fields(c.network)...)
			images, _, _ := strings.Cut(c.images, ",")
			cmd := exec.Command(interpreter, append(args, c.mean, c.std, images)...)
			cmd.Stderr = os.Stderr
			out, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			got, err := strconv.Atoi(strings.TrimSpace(string(out)))
			if err != nil {
				t.Fatal(err)
			}
			if got != run.Evaluation.Compressed.Correct {
				t.Errorf("PyTorch gets %d right, fettle %d", got, run.Evaluation.Compressed.Correct)
			}
		})
	}
}
