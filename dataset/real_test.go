package dataset

import (
	"os"
	"path/filepath"
	"testing"
)

// shared returns the path of a real file beside the project, and skips the
// test where it is absent.
func shared(t *testing.T, name string) string {
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
	path := filepath.Join(dir, "..", "shared", "data", filepath.FromSlash(name))
	if _, err := os.Stat(path); err != nil {
		t.Skipf("%s is absent", path)
	}
	return path
}

func TestRealFiles(t *testing.T) {
	for _, c := range []struct {
		name, format string
		of, pixels   int
		first        []int // labels
	}{
		{"cifar10/test1017.bin", CIFAR10, 1017, 3072, []int{3, 8, 8, 0}},
		{"cifar10/train5085.bin", CIFAR10, 5085, 3072, nil},
		{"mnist/t10k-images-idx3-ubyte.gz", IDX, 10000, 784, []int{7, 2, 1, 0}},
		{"mnist/train3678-images-idx3-ubyte", IDX, 3678, 784, []int{5, 0, 4, 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := open(t, Options{Path: shared(t, c.name), Format: c.format})
			if d.N != c.of || d.Of != c.of || len(d.pixels) != c.of*c.pixels {
				t.Errorf("%d of %d samples, %d bytes", d.N, d.Of, len(d.pixels))
			}
			for i, want := range c.first {
				if d.labels[i] != want {
					t.Errorf("label %d is %d, want %d", i, d.labels[i], want)
				}
			}
			for i, l := range d.labels {
				if l > 9 {
					t.Fatalf("label %d is %d", i, l)
				}
			}
		})
	}
}
