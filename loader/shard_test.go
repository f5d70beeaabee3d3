package loader

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/internal/safetensors"
)

func writer(data []byte) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	}
}

func testHash(t *testing.T, c *Checkpoint, content []byte) {
	t.Helper()
	sum := sha256.Sum256(content)
	if got, err := c.SHA256(context.Background()); err != nil || got != hex.EncodeToString(sum[:]) {
		t.Errorf("SHA256 = %s, %v, want %x", got, err, sum)
	}
	cancelled, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := c.SHA256(cancelled); !errors.Is(err, context.Canceled) {
		t.Errorf("SHA256 after cancel: %v", err)
	}
}

// shards writes a folder of two shards with tensors a, b and c, and the given
// index.
func shards(t *testing.T, weightMap map[string]string) string {
	dir := t.TempDir()
	for name, tensors := range map[string][]string{"s1.safetensors": {"c", "a"}, "s2.safetensors": {"b"}} {
		var sources []safetensors.Source
		for _, n := range tensors {
			sources = append(sources, source(n, dtype.U8, []byte(n), 1))
		}
		var b bytes.Buffer
		if err := safetensors.Write(&b, sources, map[string]string{"format": "pt", "file": name}); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	index, err := json.Marshal(map[string]any{"metadata": map[string]any{"total_size": 3}, "weight_map": weightMap})
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "model.safetensors.index.json"), index, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestShards(t *testing.T) {
	dir := shards(t, map[string]string{"a": "s1.safetensors", "b": "s2.safetensors", "c": "s1.safetensors"})
	for _, path := range []string{dir, filepath.Join(dir, "model.safetensors.index.json")} {
		c, err := Open(context.Background(), path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"c", "a", "b"}, names(c)); diff != "" {
			t.Error(diff)
		}
		var size int64
		sums := sha256.New()
		for _, name := range []string{"s1.safetensors", "s2.safetensors"} {
			content, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			size += int64(len(content))
			sum := sha256.Sum256(content)
			sums.Write(sum[:])
		}
		testHashIs(t, c, hex.EncodeToString(sums.Sum(nil)))
		if c.Size() != size || c.Metadata()["file"] != "s1.safetensors" {
			t.Errorf("size %d, want %d; metadata %v", c.Size(), size, c.Metadata())
		}
		if v := mustRead(t, c, "b"); v[0] != 'b' {
			t.Errorf("b = %v", v)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

func testHashIs(t *testing.T, c *Checkpoint, want string) {
	t.Helper()
	if got, err := c.SHA256(context.Background()); err != nil || got != want {
		t.Errorf("SHA256 = %s, %v, want %s", got, err, want)
	}
}

func TestBadShards(t *testing.T) {
	for name, index := range map[string]map[string]string{
		"missing shard":      {"a": "s3.safetensors"},
		"path upwards":       {"a": "../s1.safetensors"},
		"absolute path":      {"a": "/etc/passwd"},
		"no name":            {"a": ""},
		"missing tensor":     {"a": "s1.safetensors", "b": "s2.safetensors", "c": "s1.safetensors", "d": "s1.safetensors"},
		"tensor elsewhere":   {"a": "s2.safetensors", "b": "s2.safetensors", "c": "s1.safetensors"},
		"tensor not indexed": {"a": "s1.safetensors", "b": "s2.safetensors"},
		"empty index":        {},
	} {
		_, err := Open(context.Background(), shards(t, index))
		if _, ok := errors.AsType[*FormatError](err); !ok {
			t.Errorf("%s: error %v, want a *FormatError", name, err)
		}
	}
}

func TestFolderPrefersTheSingleFile(t *testing.T) {
	dir := shards(t, map[string]string{"a": "s1.safetensors"})
	content, err := os.ReadFile(filepath.Join(dir, "s2.safetensors"))
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "model.safetensors"), content, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	c, err := Open(context.Background(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if diff := cmp.Diff([]string{"b"}, names(c)); diff != "" {
		t.Error(diff)
	}
}
