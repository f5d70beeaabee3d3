package testmodels

import (
	"encoding/binary"
	"encoding/json"
	"io/fs"
	"os"
	"strings"
	"testing"
)

// TestFolderStaysSmall holds the vision models and their pictures to 1 MB, and
// the language model beside them to half of that.
func TestFolderStaysSmall(t *testing.T) {
	vision, language := int64(1<<20), int64(1<<19)
	err := fs.WalkDir(os.DirFS("."), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if strings.HasPrefix(path, "lm/") {
			language -= info.Size()
		} else {
			vision -= info.Size()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if vision < 0 || language < 0 {
		t.Errorf("too large: %d bytes left of 1 MB, %d of half", vision, language)
	}
}

type expected struct {
	Data    string    `json:"data"`
	Samples int       `json:"samples"`
	Classes int       `json:"classes"`
	Mean    []float64 `json:"mean"`
	Std     []float64 `json:"std"`
	Models  map[string]struct {
		Correct     int            `json:"correct"`
		Top1        float64        `json:"top1"`
		Loss        float64        `json:"loss"`
		Margin      float64        `json:"smallest_margin"`
		Parameters  int            `json:"parameters"`
		Predictions []int          `json:"predictions_first16"`
		Logits      [][]float64    `json:"logits_first4"`
		Nearest     map[string]any `json:"nearest_correct"`
	} `json:"models"`
}

func TestExpectedIsWhole(t *testing.T) {
	f, err := os.Open("EXPECTED.json")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d := json.NewDecoder(f)
	d.DisallowUnknownFields()
	var want expected
	if err := d.Decode(&want); err != nil {
		t.Fatal(err)
	}
	if len(want.Mean) != 1 || len(want.Std) != 1 {
		t.Errorf("mean %v, std %v, want one of each", want.Mean, want.Std)
	}
	for _, name := range []string{"resnet8", "mlp"} {
		m, ok := want.Models[name]
		if !ok {
			t.Errorf("%s is missing", name)
			continue
		}
		if got := 100 * float64(m.Correct) / float64(want.Samples); got != m.Top1 {
			t.Errorf("%s: %d of %d right is not %v %%", name, m.Correct, want.Samples, m.Top1)
		}
		if len(m.Logits) != 4 {
			t.Fatalf("%s: logits of %d pictures, want 4", name, len(m.Logits))
		}
		for i, row := range m.Logits {
			if len(row) != want.Classes || argmax(row) != m.Predictions[i] {
				t.Errorf("%s: the logits of picture %d do not give class %d", name, i, m.Predictions[i])
			}
		}
		for _, ending := range []string{".th", ".pt", ".safetensors"} {
			if _, err := os.Stat(name + ending); err != nil {
				t.Error(err)
			}
		}
	}
}

func argmax(row []float64) int {
	best := 0
	for i, v := range row {
		if v > row[best] {
			best = i
		}
	}
	return best
}

func TestDataHoldsImagesAndLabels(t *testing.T) {
	for name, samples := range map[string]int{"glyphs-calibration": 512, "glyphs-test": 1000} {
		b, err := os.ReadFile(name + ".safetensors")
		if err != nil {
			t.Fatal(err)
		}
		size := binary.LittleEndian.Uint64(b)
		var header map[string]struct {
			DType   string `json:"dtype"`
			Shape   []int  `json:"shape"`
			Offsets [2]int `json:"data_offsets"`
		}
		if err := json.Unmarshal(b[8:8+size], &header); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		images, labels := header["images"], header["labels"]
		if images.DType != "U8" || len(images.Shape) != 4 || images.Shape[0] != samples {
			t.Errorf("%s: images are %s %v", name, images.DType, images.Shape)
		}
		if labels.DType != "U8" || len(labels.Shape) != 1 || labels.Shape[0] != samples {
			t.Errorf("%s: labels are %s %v", name, labels.DType, labels.Shape)
		}
		if end := 8 + int(size) + labels.Offsets[1]; end != len(b) {
			t.Errorf("%s: %d bytes, want %d", name, len(b), end)
		}
		counts := make([]int, 10)
		for _, label := range b[8+int(size)+labels.Offsets[0]:] {
			counts[label]++
		}
		for class, n := range counts {
			if n < samples/10 || n > samples/10+1 {
				t.Errorf("%s: %d pictures of class %d", name, n, class)
			}
		}
	}
}
