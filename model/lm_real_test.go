package model

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"gonum.org/v1/gonum/blas/blas32"

	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/internal/vec"
	"github.com/fettle-dev/fettle/loader"
)

// moduleFile returns a path relative to the module's root, and skips the test
// where it is absent.
func moduleFile(t testing.TB, name string) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("no go.mod above the test")
		}
		dir = filepath.Dir(dir)
	}
	path := filepath.Join(dir, filepath.FromSlash(name))
	if _, err := os.Stat(path); err != nil {
		t.Skipf("%s is absent", path)
	}
	return path
}

// languageModel opens a Hugging Face folder and checks what stands in it twice.
func languageModel(t testing.TB, folder string, workers int) (*Graph, *Executor) {
	t.Helper()
	config, err := os.ReadFile(filepath.Join(folder, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := loader.Open(context.Background(), folder)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	g, err := Build(c.Tensors(), Options{Config: config})
	if err != nil {
		t.Fatal(err)
	}
	if err := CheckCopies(context.Background(), g, Stored(c)); err != nil {
		t.Fatal(err)
	}
	return g, NewExecutor(g, pool.New(workers), Stored(c))
}

// losses returns the mean loss of each sequence, its first token not counted.
// Logits are computed some rows at a time.
func losses(t testing.TB, e *Executor, x *Tensor) []float64 {
	t.Helper()
	ctx := context.Background()
	hidden, err := e.Hidden(ctx, x)
	if err != nil {
		t.Fatal(err)
	}
	head, err := e.Head()
	if err != nil {
		t.Fatal(err)
	}
	nll := make([]float64, len(x.Tokens)) // of the token after each
	const rows = 256
	logits := blas32.General{Cols: head.Outputs, Stride: head.Outputs, Data: make([]float32, rows*head.Outputs)}
	for from := 0; from < len(nll); from += rows {
		logits.Rows = min(rows, len(nll)-from)
		in := blas32.General{Rows: logits.Rows, Cols: head.Inputs, Stride: head.Inputs, Data: hidden.Data[from*head.Inputs:]}
		if err := head.Logits(ctx, in, logits); err != nil {
			t.Fatal(err)
		}
		for r := range logits.Rows {
			if from+r+1 < len(nll) {
				row := logits.Data[r*logits.Stride:][:logits.Cols]
				nll[from+r] = vec.LogSumExp(row) - float64(row[x.Tokens[from+r+1]])
			}
		}
	}
	var means []float64
	from := 0
	for _, n := range x.Lengths {
		sum := 0.0
		for r := from; r < from+n-1; r++ {
			sum += nll[r]
		}
		means = append(means, sum/float64(n-1))
		from += n
	}
	return means
}

// documents reads ids of 16 bits and the documents' lengths.
func documents(t testing.TB, stem string) [][]uint32 {
	t.Helper()
	raw, err := os.ReadFile(stem + ".u16")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(stem + ".lengths.json")
	if err != nil {
		t.Fatal(err)
	}
	var lengths []int
	if err := json.Unmarshal(text, &lengths); err != nil {
		t.Fatal(err)
	}
	var docs [][]uint32
	for _, n := range lengths {
		doc := make([]uint32, n)
		for i := range doc {
			doc[i] = uint32(binary.LittleEndian.Uint16(raw[2*i:]))
		}
		docs, raw = append(docs, doc), raw[2*n:]
	}
	if len(raw) != 0 {
		t.Fatalf("%s: %d bytes after the last document", stem, len(raw))
	}
	return docs
}

// meanLoss returns the mean over all predicted tokens.
func meanLoss(t testing.TB, e *Executor, docs [][]uint32, batch int) float64 {
	t.Helper()
	sum, count := 0.0, 0
	for from := 0; from < len(docs); from += batch {
		x := NewTokens(docs[from:min(from+batch, len(docs))]...)
		for i, loss := range losses(t, e, x) {
			sum += loss * float64(x.Lengths[i]-1)
			count += x.Lengths[i] - 1
		}
	}
	return sum / float64(count)
}

// The figures are PyTorch's, found without fettle: see ../shared/data/README.md.
func TestStories260K(t *testing.T) {
	folder := moduleFile(t, "../shared/data/llm-stories260k")
	_, e := languageModel(t, folder, 2)
	checkExpected(t, e, folder)
	if testing.Short() {
		return
	}
	docs := documents(t, filepath.Join(folder, "valid"))
	if got := meanLoss(t, e, docs[:200], 50); math.Abs(got-1.305212) > 1e-5 {
		t.Errorf("first 200 documents: %.6f nats a token, want 1.305212", got)
	}
	if os.Getenv("FETTLE_LONG") == "1" {
		if got := meanLoss(t, e, docs, 64); math.Abs(got-1.293664) > 1e-5 {
			t.Errorf("all documents: %.6f nats a token, want 1.293664", got)
		}
	}
}

func TestTinyStories656K(t *testing.T) {
	folder := moduleFile(t, "../shared/data/llm-tinystories-656k")
	g, e := languageModel(t, folder, 2)
	if head := len(g.Ops) - 1; !g.Tied(head) || g.Ops[0].Embedding.Table != "lm_head.weight" {
		t.Errorf("the head is not tied:\n%v", g)
	}
	checkExpected(t, e, folder)
}

// The project's own model, with the figures of its generator.
func TestStoriesOfTestmodels(t *testing.T) {
	folder := moduleFile(t, "testmodels/lm")
	_, e := languageModel(t, folder, 2)
	text, err := os.ReadFile(filepath.Join(folder, "EXPECTED.json"))
	if err != nil {
		t.Fatal(err)
	}
	var want struct {
		Documents int
		Loss      float64
		IDs       []uint32
		Logits    []float64 `json:"logits_last_of_first"`
	}
	if err := json.Unmarshal(text, &want); err != nil {
		t.Fatal(err)
	}
	docs := documents(t, filepath.Join(folder, "test"))
	if len(docs) != want.Documents || !slices.Equal(docs[0], want.IDs) {
		t.Errorf("%d documents, the first is %v", len(docs), docs[0])
	}
	if got := meanLoss(t, e, docs, 64); math.Abs(got-want.Loss) > 1e-5 {
		t.Errorf("%.6f nats a token, want %.6f", got, want.Loss)
	}
	y := forward(t, e, NewTokens(docs[0]))
	wantClose(t, "logits", sample(y, len(docs[0])-2), want.Logits, 1e-4)
}

// checkExpected holds the losses and last logits of EXPECTED.json.
func checkExpected(t *testing.T, e *Executor, folder string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(folder, "EXPECTED.json"))
	if err != nil {
		t.Fatal(err)
	}
	var want struct {
		Docs []struct {
			IDs    []uint32  `json:"ids"`
			NLL    float64   `json:"mean_nll"`
			Logits []float64 `json:"last_logits_first8"`
		} `json:"docs"`
	}
	if err := json.Unmarshal(text, &want); err != nil {
		t.Fatal(err)
	}
	for i, d := range want.Docs {
		x := NewTokens(d.IDs)
		if got := losses(t, e, x)[0]; math.Abs(got-d.NLL) > 1e-5 {
			t.Errorf("document %d: %.6f nats a token, want %.6f", i, got, d.NLL)
		}
		y, err := e.Forward(context.Background(), x)
		if err != nil {
			t.Fatal(err)
		}
		last := sample(y, len(d.IDs)-2) // the last that predicts a token
		for j, v := range d.Logits {
			if math.Abs(float64(last[j])-v) > 1e-4 {
				t.Errorf("document %d: logit %d is %v, want %v", i, j, last[j], v)
			}
		}
	}
}
