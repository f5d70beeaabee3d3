package inspect_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fettle-dev/fettle/inspect"
)

// TestStored: weights that another program has quantized are summed up by how they are
// stored, and the architecture is that of the model behind them.
func TestStored(t *testing.T) {
	const folder = "../export/testdata/stored/gptq-dynamic"
	r, err := inspect.Checkpoint(context.Background(), folder, inspect.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if r.Architecture != "llama" || len(r.Compressed) != 3 || len(r.Notes) > 0 || r.Written != nil {
		t.Fatalf("%s, %+v, %q", r.Architecture, r.Compressed, r.Notes)
	}
	// k_proj has 32×32 codes of 2 bits, 2 groups of 32 scales of 2 bytes and zero points
	// of 2 bits, and an index of 32 words.
	if got, want := r.Compressed[0], (inspect.Encoded{Encoding: "GPTQ 2 bits g16", Weights: 1, Elements: 1024, Bytes: 256 + 128 + 16 + 128}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}

	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(folder)); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	changed := strings.Replace(string(text), `"gptq"`, `"bitsandbytes"`, 1)
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err = inspect.Checkpoint(context.Background(), dir, inspect.Options{})
	if err != nil || len(r.Notes) != 1 || !strings.Contains(r.Notes[0], "bitsandbytes") {
		t.Errorf("%v, %q", err, r.Notes)
	}
}
