package dataset

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/internal/safetensors"
)

// A row of CIFAR-10's binary version: the label, then the red, the green and
// the blue plane of 32×32 pixels.
const (
	cifarPixels  = 3 * 32 * 32
	cifarRow     = 1 + cifarPixels
	cifarClasses = 10
)

func openCIFAR10(ctx context.Context, o Options) (*file, error) {
	s, err := openSource(ctx, o.Path)
	if err != nil {
		return nil, err
	}
	return parseCIFAR10(s)
}

// parseCIFAR10 checks what can be checked: the format has no header.
func parseCIFAR10(s *source) (*file, error) {
	if s.size == 0 || s.size%cifarRow != 0 {
		return nil, &Error{
			Path: s.path, Problem: fmt.Sprintf("has %d bytes, and CIFAR-10's binary version has a multiple of %d", s.size, cifarRow),
			Help: "check that the file is whole and of this format (data_batch_1.bin, not the Python version)",
		}
	}
	return &file{
		of: int(s.size / cifarRow), shape: []int{3, 32, 32}, classes: cifarClasses,
		images: records{source: s, base: 1, stride: cifarRow, size: cifarPixels},
		labels: records{source: s, base: 0, stride: cifarRow, size: 1},
	}, nil
}

func openIDX(ctx context.Context, o Options) (*file, error) {
	images, err := openSource(ctx, o.Path)
	if err != nil {
		return nil, err
	}
	path := o.Labels
	if path == "" {
		if path, err = labelsPath(o.Path); err != nil {
			return nil, err
		}
	}
	labels, err := openSource(ctx, path)
	if err != nil {
		return nil, err
	}
	return parseIDX(images, labels)
}

// labelsPath finds the labels that belong to MNIST's images.
func labelsPath(images string) (string, error) {
	dir, name := filepath.Split(images)
	derived := strings.NewReplacer("images", "labels", "idx3", "idx1").Replace(name)
	if derived == name {
		return "", &Error{Path: images, Problem: "the file of labels cannot be derived from the name", Help: "set labels to its path"}
	}
	stem := strings.TrimSuffix(derived, ".gz")
	for _, try := range []string{derived, stem, stem + ".gz"} {
		if _, err := os.Stat(filepath.Join(dir, try)); err == nil {
			return filepath.Join(dir, try), nil
		}
	}
	return "", &Error{
		Path: images, Problem: fmt.Sprintf("its labels are not at %s", filepath.Join(dir, derived)),
		Help: "set labels to the path of the file of labels", Err: fs.ErrNotExist,
	}
}

func parseIDX(images, labels *source) (*file, error) {
	d, err := idxHeader(images, 3)
	if err != nil {
		return nil, err
	}
	l, err := idxHeader(labels, 1)
	if err != nil {
		return nil, err
	}
	if d[0] != l[0] {
		return nil, &Error{Path: images.path, Problem: fmt.Sprintf("has %d images, and %s has %d labels", d[0], labels.path, l[0]), Help: "give the labels of these images"}
	}
	of, pixels := d[0], d[1]*d[2]
	p := records{source: images, base: 16, stride: int64(pixels), size: pixels}
	q := records{source: labels, base: 8, stride: 1, size: 1}
	return &file{of: of, shape: []int{1, d[1], d[2]}, images: p, labels: q}, nil
}

// idxHeader returns the lengths of the axes after checking the magic number
// (two zero bytes, type 8 for unsigned bytes, the number of axes) and that
// they give the file's size.
func idxHeader(s *source, axes int) ([]int, error) {
	header := int64(4 + 4*axes)
	b, err := s.head(header)
	if err != nil {
		return nil, err
	}
	if int64(len(b)) < header {
		return nil, &Error{Path: s.path, Problem: fmt.Sprintf("has %d bytes, fewer than the header of an IDX file of %d axes", s.size, axes), Help: "check that the file is whole"}
	}
	if magic := binary.BigEndian.Uint32(b); magic != 8<<8|uint32(axes) {
		return nil, &Error{
			Path: s.path, Problem: fmt.Sprintf("begins with %#08x, and an IDX file of unsigned bytes with %d axes with %#08x", magic, axes, 8<<8|axes),
			Help: "check the format, and that images and labels are not exchanged",
		}
	}
	shape := make([]int, axes)
	content := s.size - header
	for i, left := 0, content; i < axes; i++ {
		n := int64(binary.BigEndian.Uint32(b[4+4*i:]))
		if n == 0 || n > left { // left shrinks to what the axes so far leave for this one
			return nil, s.wrongSize(b, axes)
		}
		left /= n
		shape[i] = int(n)
	}
	total := int64(1)
	for _, n := range shape {
		total *= int64(n)
	}
	if total != content || total/int64(shape[0]) > maxPixels {
		return nil, s.wrongSize(b, axes)
	}
	return shape, nil
}

func (s *source) wrongSize(header []byte, axes int) error {
	shape := make([]uint32, axes)
	for i := range shape {
		shape[i] = binary.BigEndian.Uint32(header[4+4*i:])
	}
	return &Error{Path: s.path, Problem: fmt.Sprintf("says it holds %v bytes (IDX), and %d follow the header", shape, s.size-int64(len(header))), Help: "check that the file is whole"}
}

func openSafetensors(o Options) (*file, error) {
	in, err := os.Open(o.Path)
	if err != nil {
		return nil, &Error{Path: o.Path, Problem: "cannot be opened", Err: err}
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return nil, &Error{Path: o.Path, Problem: "cannot be opened", Err: err}
	}
	header, err := safetensors.ReadHeader(in, info.Size())
	if err != nil {
		return nil, &Error{Path: o.Path, Problem: "is not a safetensors file", Help: "check the format", Err: err}
	}
	s := &source{path: o.Path, size: info.Size(), open: func() (io.ReadCloser, error) { return os.Open(o.Path) }}
	return parseSafetensors(s, header)
}

// openFeatures opens an array whose first axis are samples.
func openFeatures(o Options) (*file, error) {
	in, err := os.Open(o.Path)
	if err != nil {
		return nil, &Error{Path: o.Path, Problem: "cannot be opened", Err: err}
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return nil, &Error{Path: o.Path, Problem: "cannot be opened", Err: err}
	}
	const help = "save it with numpy.save as float32, samples first: two to four axes"
	a, err := parseNPYOf(in, info.Size(), npyFloats, 4)
	if err != nil {
		return nil, &Error{Path: o.Path, Problem: "is not an array of features in NumPy's format", Help: help, Err: err}
	}
	size := (info.Size() - a.begin) / int64(a.shape[0])
	if len(a.shape) < 2 || size > maxPixels {
		return nil, &Error{Path: o.Path, Problem: fmt.Sprintf("has shape %v", a.shape), Help: help}
	}
	s := &source{path: o.Path, size: info.Size(), open: func() (io.ReadCloser, error) { return os.Open(o.Path) }}
	return &file{
		of: a.shape[0], shape: a.shape[1:], element: a.element,
		images: records{source: s, base: a.begin, stride: size, size: int(size)},
	}, nil
}

// parseSafetensors finds the tensors images and labels.
func parseSafetensors(s *source, header *safetensors.Header) (*file, error) {
	bad := func(format string, args ...any) error {
		return &Error{
			Path: s.path, Problem: fmt.Sprintf(format, args...),
			Help: "store images as U8 of shape [samples channels height width] and labels as I64 or U8 of shape [samples]",
		}
	}
	byName := make(map[string]safetensors.Info)
	for _, t := range header.Tensors {
		byName[t.Name] = t
	}
	images, hasImages := byName["images"]
	labels, hasLabels := byName["labels"]
	if !hasImages || !hasLabels {
		return nil, bad("has not both of the tensors images and labels")
	}
	if images.DType != dtype.U8 || len(images.Shape) != 4 || images.Begin == images.End {
		return nil, bad("images are %s of shape %v", images.DType, images.Shape)
	}
	of := images.Shape[0]
	if (labels.DType != dtype.I64 && labels.DType != dtype.U8) || !slices.Equal(labels.Shape, []int{of}) {
		return nil, bad("labels are %s of shape %v for %d images", labels.DType, labels.Shape, of)
	}
	size := (images.End - images.Begin) / int64(of)
	if size > maxPixels {
		return nil, bad("one image has %d bytes", size)
	}
	p := records{source: s, base: header.DataOffset + images.Begin, stride: size, size: int(size)}
	width := labels.DType.Size()
	l := records{source: s, base: header.DataOffset + labels.Begin, stride: int64(width), size: width}
	return &file{of: of, shape: images.Shape[1:], images: p, labels: l}, nil
}
