package tokenizer

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// sharedData finds a folder of the real models, or skips.
func sharedData(t *testing.T, name string) string {
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
	path := filepath.Join(dir, "..", "shared", "data", name)
	if _, err := os.Stat(path); err != nil {
		t.Skipf("needs ../shared/data/%s, which is not there", name)
	}
	return path
}

func TestTinyStories(t *testing.T) {
	dir := sharedData(t, "llm-tinystories-656k")
	tok, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if tok.VocabSize() != 2048 {
		t.Errorf("VocabSize %d, want 2048", tok.VocabSize())
	}
	raw, err := os.ReadFile(filepath.Join(dir, "EXPECTED.json"))
	if err != nil {
		t.Fatal(err)
	}
	var want struct {
		Docs []struct {
			Prefix string `json:"doc_prefix"`
			IDs    []uint32
		}
	}
	if err := json.Unmarshal(raw, &want); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(sharedData(t, "text-tinystories"), "valid.txt"))
	if err != nil {
		t.Fatal(err)
	}
	stories := strings.Split(string(text), "<|endoftext|>")
	for _, doc := range want.Docs {
		i := slices.IndexFunc(stories, func(s string) bool {
			return strings.HasPrefix(strings.TrimSpace(s), doc.Prefix)
		})
		if i < 0 {
			t.Fatalf("no story begins with %q", doc.Prefix)
		}
		got, err := tok.WithoutPrefix().Encode(strings.TrimSpace(stories[i]), true)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got, doc.IDs) {
			t.Errorf("%q: other ids", doc.Prefix)
		}
	}
}
