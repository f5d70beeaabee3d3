// Package subject says where the real models of the benchmarks and their data are.
// They are not part of the project.
package subject

import (
	"fmt"
	"path/filepath"
	"strings"
)

// Subject is a model with calibration and evaluation data, as mappings of a recipe.
type Subject struct {
	Model, Calibration, Evaluation string
	Network                        string // a list, where names do not tell the network
}

// Networks of MNIST, by their files, and as a recipe describes them.
var (
	mnist    = map[string]string{"mnist-mlp4": "ahmedsaid_mlp.pt", "mnist-mlp2": "tinygrad_mlp.safetensors"}
	networks = map[string]string{
		"mnist-mlp4": "[{linear: fc1}, relu, {linear: fc2}, relu, {linear: fc3}, relu, {linear: fc4}]",
		"mnist-mlp2": "[{linear: l1}, leaky_relu, {linear: l2}]",
	}
)

// Options of Find.
type Options struct {
	Images    int  // calibration images of a ResNet
	Documents int  // calibration documents of a language model
	Tune      bool // evaluate on calibration data that is left out, to choose defaults by
}

// text is how documents become tokens for the second language model.
const text = `format: text, text: {separator: "<|endoftext|>", strip: true, min_chars: 51, length: 512, skip_long: true, bos: 1, prefix: false}`

// Find returns resnet20, resnet56, …, mnist-mlp4, mnist-mlp2, llm-stories260k or
// llm-tinystories-656k in a folder.
func Find(data, model string, o Options) (Subject, error) {
	at := func(parts ...string) string {
		return fmt.Sprintf("%q", filepath.Join(append([]string{data}, parts...)...))
	}
	s := Subject{Model: filepath.Join(data, model)}
	switch model {
	case "llm-stories260k":
		s.Calibration = "data: " + at(model, "calib.u16") + ", format: u16"
		s.Evaluation = "data: " + at(model, "valid.u16") + ", format: u16, samples: 200"
		if o.Tune {
			s.Evaluation = s.Calibration + ", subset: [500, 700]"
		}
		s.Calibration += fmt.Sprintf(", subset: [0, 500], samples: %d", o.Documents)
		return s, nil
	case "llm-tinystories-656k":
		s.Calibration = "data: " + at("text-tinystories", "test.txt") + ", " + text
		s.Evaluation = "data: " + at("text-tinystories", "valid.txt") + ", " + text + ", samples: 200"
		if o.Tune {
			s.Evaluation = s.Calibration + ", subset: [300, 500]"
		}
		s.Calibration += fmt.Sprintf(", subset: [0, 300], samples: %d", o.Documents)
		return s, nil
	}
	if path, ok := mnist[model]; ok {
		train := "data: " + at("mnist", "train3678-images-idx3-ubyte") + ", format: idx"
		s.Model = filepath.Join(data, "mnist-models", path)
		s.Network = networks[model]
		s.Calibration = train + ", subset: [0, 3000]"
		s.Evaluation = "data: " + at("mnist", "t10k-images-idx3-ubyte.gz") + ", format: idx"
		if o.Tune {
			s.Evaluation = train + ", subset: [3000, 3678]"
		}
		return s, nil
	}
	models, err := filepath.Glob(filepath.Join(data, "resnet-cifar10", model+"-*.th"))
	if err != nil || len(models) != 1 {
		return s, fmt.Errorf("no model %s in %s", model, data)
	}
	train := "data: " + at("cifar10", "train5085.bin") + ", format: cifar10"
	s.Model = models[0]
	s.Calibration = fmt.Sprintf("%s, subset: [0, 4068], samples: %d", train, o.Images)
	s.Evaluation = "data: " + at("cifar10", "test1017.bin") + ", format: cifar10"
	if o.Tune {
		s.Evaluation = train + ", subset: [4068, 5085]"
	}
	return s, nil
}

// Language reports whether a model's samples are tokens.
func Language(model string) bool { return strings.HasPrefix(model, "llm") }
