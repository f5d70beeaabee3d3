package export

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fettle-dev/fettle/record"
)

func TestManifest(t *testing.T) {
	files := []record.File{
		{Name: "model.safetensors", Role: "weights", Bytes: 2, SHA256: "b"},
		{Name: "config.json", Role: "config", Bytes: 1, SHA256: "a"},
	}
	given := slices.Clone(files)
	var contents [2][]byte
	for i := range contents {
		dir := t.TempDir()
		sum, err := WriteManifest(dir, "source", "recipe", files)
		if err != nil {
			t.Fatal(err)
		}
		if contents[i], err = os.ReadFile(filepath.Join(dir, record.ManifestName)); err != nil {
			t.Fatal(err)
		}
		if want := sha256.Sum256(contents[i]); sum != hex.EncodeToString(want[:]) {
			t.Errorf("SHA-256 %s, want %x", sum, want)
		}
		slices.Reverse(files) // the order given does not matter
	}
	if diff := cmp.Diff(given, files); diff != "" {
		t.Errorf("the caller's list was changed:\n%s", diff)
	}
	if !bytes.Equal(contents[0], contents[1]) {
		t.Errorf("%s\n%s", contents[0], contents[1])
	}
	var got record.Manifest
	if err := json.Unmarshal(contents[0], &got); err != nil {
		t.Fatal(err)
	}
	want := record.Manifest{Version: record.Version, Source: "source", Recipe: "recipe", Files: []record.File{given[1], given[0]}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("manifest (-want +got):\n%s", diff)
	}
}
