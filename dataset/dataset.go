// Package dataset opens labelled images, features and text for calibration and
// evaluation and draws samples from them, the same on every machine.
//
// OpenText reads text and token ids for language models. OpenImages reads four
// formats: "cifar10", the binary version of CIFAR-10; "idx",
// MNIST's, raw or gzip; "safetensors", a file with the tensors images (U8,
// N × channels × height × width) and labels (I64 or U8, N); "npy", an array of
// F16, F32 or F64 whose first axis are samples, without labels, whose numbers
// are taken as they are.
package dataset

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"math/bits"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/fettle-dev/fettle/internal/dtype"
)

// The formats.
const (
	CIFAR10     = "cifar10"
	IDX         = "idx"
	Safetensors = "safetensors"
)

// Normalize turns a pixel p in 0…255 into (p/255 − Mean)/Std of its channel.
// The zero value leaves p/255.
type Normalize struct{ Mean, Std []float32 }

// Options say what to open and which samples to draw.
type Options struct {
	Path, Format string

	// Labels is the file of labels of an "idx" set. "" derives it from Path:
	// images becomes labels, idx3 becomes idx1, with or without .gz.
	Labels string

	// Subset is the half-open range of the file's samples to draw from; zero
	// means all of them.
	Subset [2]int

	// Samples is how many to draw; 0 means all of the subset.
	Samples int

	// Seed draws at random without repetition: equal seeds draw equal samples
	// on every machine, and fewer samples are the first of more. nil takes the
	// subset's first samples in order.
	Seed *int64

	Normalize Normalize
}

// Images are samples that were drawn: images, whose pixels are held in memory as
// bytes, or features, as they are stored.
type Images struct {
	N            int   // samples drawn
	Shape        []int // channels, height, width; of features, one to three axes
	Of           int   // samples that the file holds
	Path, Format string

	pixels    []byte      // N × size of Shape elements
	element   dtype.DType // of features; Invalid for pixels
	labels    []int
	normalize Normalize
}

// Error says what is wrong with a data set or with what is asked of it, and
// what to do.
type Error struct {
	Path    string
	Problem string
	Help    string
	Err     error // the cause, where there is one
}

func (e *Error) Error() string {
	text := fmt.Sprintf("dataset %s: %s", e.Path, e.Problem)
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	if e.Help != "" {
		text += "; " + e.Help
	}
	return text
}

func (e *Error) Unwrap() error { return e.Err }

// maxPixels bounds one sample, so that a hostile header cannot ask for more
// memory than an image needs.
const maxPixels = 1 << 26

// OpenImages opens a data set and reads the samples that the options draw. All
// errors are *Error, but for the context's.
func OpenImages(ctx context.Context, o Options) (*Images, error) {
	var f *file
	var err error
	switch o.Format {
	case CIFAR10:
		f, err = openCIFAR10(ctx, o)
	case IDX:
		f, err = openIDX(ctx, o)
	case Safetensors:
		f, err = openSafetensors(o)
	case NPY:
		f, err = openFeatures(o)
	default:
		err = &Error{
			Path: o.Path, Problem: fmt.Sprintf("format %q is unknown", o.Format),
			Help: fmt.Sprintf("set it to one of %s", strings.Join([]string{CIFAR10, IDX, NPY, Safetensors}, ", ")),
		}
	}
	if err != nil {
		return nil, err
	}
	return draw(ctx, f, o)
}

// file is an opened data set before samples are drawn.
type file struct {
	of    int
	shape []int
	// classes is one more than the highest label that the format allows; 0
	// where it does not say.
	classes        int
	images, labels records // a label is 1 byte, or 8 little-endian; no source where there are none
	element        dtype.DType
}

func draw(ctx context.Context, f *file, o Options) (*Images, error) {
	samples, err := choose(f.of, o)
	if err != nil {
		return nil, err
	}
	d := &Images{N: len(samples), Shape: f.shape, Of: f.of, Path: o.Path, Format: o.Format, element: f.element}
	if d.element == dtype.Invalid {
		if err := d.SetNormalize(o.Normalize); err != nil {
			return nil, err
		}
	}
	if f.labels.source != nil {
		if d.labels, err = f.readLabels(ctx, samples); err != nil {
			return nil, err
		}
	}
	if d.pixels, err = f.images.read(ctx, samples); err != nil {
		return nil, err
	}
	return d, nil
}

func (f *file) readLabels(ctx context.Context, samples []int) ([]int, error) {
	b, err := f.labels.read(ctx, samples)
	if err != nil {
		return nil, err
	}
	labels := make([]int, len(samples))
	for i := range labels {
		v := uint64(b[i*f.labels.size])
		if f.labels.size == 8 {
			v = binary.LittleEndian.Uint64(b[8*i:])
		}
		if v > math.MaxInt32 || (f.classes > 0 && v >= uint64(f.classes)) {
			return nil, &Error{Path: f.labels.source.path, Problem: fmt.Sprintf("sample %d has label %d", samples[i], int64(v)), Help: f.labelHelp()}
		}
		labels[i] = int(v)
	}
	return labels, nil
}

func (f *file) labelHelp() string {
	if f.classes == 0 {
		return "labels count from 0"
	}
	return fmt.Sprintf("labels of this format are 0 to %d: check that the file is of it", f.classes-1)
}

// choose returns the places in the file of the samples to draw, in order.
func choose(of int, o Options) ([]int, error) {
	from, to := o.Subset[0], o.Subset[1]
	if from == 0 && to == 0 {
		to = of
	}
	if from < 0 || to > of || from >= to {
		return nil, &Error{
			Path: o.Path, Problem: fmt.Sprintf("subset %d…%d of %d samples", o.Subset[0], o.Subset[1], of),
			Help: fmt.Sprintf("give a first sample and one past the last, within 0 and %d", of),
		}
	}
	n := o.Samples
	if n == 0 {
		n = to - from
	}
	if n < 0 || n > to-from {
		return nil, &Error{
			Path: o.Path, Problem: fmt.Sprintf("%d samples asked for, %d are there to draw from", o.Samples, to-from),
			Help: "ask for fewer samples, or for 0 to take all",
		}
	}
	all := make([]int, to-from)
	for i := range all {
		all[i] = from + i
	}
	if o.Seed != nil {
		shuffle(all, n, *o.Seed)
	}
	return all[:n], nil
}

// shuffle moves a random choice to the first n places. It draws from PCG
// itself: the library's Perm may change between releases, its generators may
// not.
func shuffle(all []int, n int, seed int64) {
	r := rand.NewPCG(uint64(seed), 0x6665_7474_6c65) // the second word separates these draws from other users of the seed
	for i := range n {
		j := i + int(below(r, uint64(len(all)-i)))
		all[i], all[j] = all[j], all[i]
	}
}

// below returns a uniform number under n (Lemire 2019, with rejection).
func below(r *rand.PCG, n uint64) uint64 {
	for {
		hi, lo := bits.Mul64(r.Uint64(), n)
		if lo >= -n%n {
			return hi
		}
	}
}

// SetNormalize replaces the normalization, which must have as many channels as
// the images or none, with finite means and positive deviations.
func (d *Images) SetNormalize(n Normalize) error {
	channels := d.Shape[0]
	if len(n.Mean) != len(n.Std) || (len(n.Mean) != 0 && len(n.Mean) != channels) {
		return &Error{
			Path: d.Path, Problem: fmt.Sprintf("%d means and %d deviations for images of %d channels", len(n.Mean), len(n.Std), channels),
			Help: "give one of each for every channel, or none",
		}
	}
	for c := range n.Mean {
		mean, std := float64(n.Mean[c]), float64(n.Std[c])
		if math.IsNaN(mean) || math.IsInf(mean, 0) || !(std > 0) || math.IsInf(std, 0) {
			return &Error{
				Path: d.Path, Problem: fmt.Sprintf("mean %v and deviation %v of channel %d", mean, std, c),
				Help: "give finite means and positive deviations",
			}
		}
	}
	d.normalize = Normalize{Mean: slices.Clone(n.Mean), Std: slices.Clone(n.Std)}
	return nil
}

// Labels returns the labels in the order drawn; nil where there are none.
func (d *Images) Labels() []int { return slices.Clone(d.labels) }

// Read writes n samples, from the given one on in the order drawn, to dst:
// normalized, samples × channels × height × width. Features are as they stand in
// the file.
func (d *Images) Read(dst []float32, from, n int) error {
	per := len(d.pixels) / d.N
	if d.element != dtype.Invalid {
		per /= d.element.Size()
	}
	if from < 0 || n < 0 || from > d.N || n > d.N-from {
		return &Error{Path: d.Path, Problem: fmt.Sprintf("samples %d…%d of %d were asked for", from, from+n, d.N)}
	}
	if len(dst) < n*per {
		return &Error{Path: d.Path, Problem: fmt.Sprintf("room for %d numbers, %d samples have %d", len(dst), n, n*per)}
	}
	if width := d.element.Size(); d.element != dtype.Invalid {
		return d.element.ToFloat32(dst[:n*per], d.pixels[from*per*width:][:n*per*width])
	}
	area, channels := d.Shape[1]*d.Shape[2], d.Shape[0]
	tables := make([][256]float32, channels)
	for c := range tables {
		d.values(c, &tables[c])
	}
	for i := range n * channels {
		table := &tables[i%channels]
		out := dst[i*area:][:area]
		for j, p := range d.pixels[from*per+i*area:][:area] {
			out[j] = table[p]
		}
	}
	return nil
}

// values fills in what each pixel of a channel becomes.
func (d *Images) values(channel int, table *[256]float32) {
	mean, std := float32(0), float32(1)
	if len(d.normalize.Mean) > 0 {
		mean, std = d.normalize.Mean[channel], d.normalize.Std[channel]
	}
	for p := range table {
		table[p] = (float32(p)/255 - mean) / std
	}
}

// SHA256 returns the hex SHA-256 of the samples used: their shape, pixels and
// labels in the order drawn, and the normalization.
func (d *Images) SHA256() string {
	h := sha256.New()
	word := func(v int) {
		_, _ = h.Write(binary.LittleEndian.AppendUint64(nil, uint64(v))) // a hash does not fail
	}
	word(d.N)
	for _, s := range d.Shape {
		word(s)
	}
	if d.element != dtype.Invalid {
		_, _ = h.Write([]byte(d.element.String()))
	}
	_, _ = h.Write(d.pixels)
	for _, l := range d.labels {
		word(l)
	}
	for _, list := range [][]float32{d.normalize.Mean, d.normalize.Std} {
		word(len(list))
		for _, v := range list {
			word(int(math.Float32bits(v)))
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}
