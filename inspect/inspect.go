// Package inspect says what a checkpoint holds: its tensors, what they weigh, and
// on request what their values are like.
//
// Without statistics only headers are read. With them each tensor is read once, in
// pieces, so that memory does not grow with the model.
package inspect

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/fettle-dev/fettle/export"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/loader"
	"github.com/fettle-dev/fettle/model"
	"github.com/fettle-dev/fettle/record"
)

// Version is the version of the report's layout. It grows when a field changes its
// meaning or goes; new fields leave it as it is.
const Version = 1

// Report is what a checkpoint holds. Its JSON has the same bytes for any number of
// workers.
type Report struct {
	Version   int    `json:"version"`
	Path      string `json:"path"`
	Format    string `json:"format"`
	FileBytes int64  `json:"file_bytes"` // of the weight files, headers included
	// Architecture is fettle's name of it, and for GGUF the file's own; "" where it
	// is not recognised.
	Architecture string `json:"architecture"`
	// Written is set where fettle has written the folder. Tensors are then the packed
	// ones, as they lie in the files.
	Written *Written `json:"written,omitempty"`
	// Compressed says how weights are stored that are compressed already, by fettle or
	// another program, by name of the encoding.
	Compressed []Encoded `json:"compressed,omitempty"`

	// All counts the whole checkpoint, whatever the filter. Here and in all sums a
	// tensor of several names counts once.
	All     Total     `json:"all"`
	Listed  Total     `json:"listed"` // what the filter leaves
	Tensors []Tensor  `json:"tensors"`
	Groups  []Total   `json:"groups"` // of the listed tensors, the largest first
	DTypes  []Total   `json:"dtypes"` // of the listed tensors, the largest first
	Skipped []Skipped `json:"skipped,omitempty"`

	Metadata map[string]string `json:"metadata,omitempty"` // short values that the format carries
	Notes    []string          `json:"notes,omitempty"`    // what else a user should know
}

// Written is what fettle's own files stand for.
type Written struct {
	Compressed int   `json:"compressed"`  // weights
	DenseBytes int64 `json:"dense_bytes"` // of all tensors when dequantized
}

// Encoded is the weights that are stored in one way.
type Encoded struct {
	Encoding string `json:"encoding"` // such as "GPTQ 4 bits g128"
	Weights  int    `json:"weights"`
	Elements int64  `json:"elements"`
	Bytes    int64  `json:"bytes"` // of all that is stored of them
}

// Tensor is one entry.
type Tensor struct {
	Name     string `json:"name"`
	DType    string `json:"dtype"` // as stored; of GGUF blocks their type, such as Q4_K
	Shape    []int  `json:"shape"`
	Elements int64  `json:"elements"`
	Bytes    int64  `json:"bytes"` // as stored, without padding
	// Share is of the whole checkpoint's tensor bytes; 0 of a tied tensor.
	Share  float64 `json:"share"`
	Group  string  `json:"group"`             // see Total
	TiedTo string  `json:"tied_to,omitempty"` // the tensor before it that is the same one
	// Stats is nil unless asked for, and for types that are not real floating point:
	// codes, indices and counters are no values.
	Stats *Stats `json:"stats,omitempty"`
}

// Total sums tensors up. A layer group is the tensors of modules that differ in
// numbers alone: layers.*.mlp.up_proj.
type Total struct {
	Name     string  `json:"name,omitempty"`
	Tensors  int     `json:"tensors"`
	Elements int64   `json:"elements"`
	Bytes    int64   `json:"bytes"`
	Share    float64 `json:"share"` // of the whole checkpoint's tensor bytes
}

// Skipped is a tensor that is there but cannot be read.
type Skipped struct {
	Name   string `json:"name"`
	Reason string `json:"reason"`
}

// Order is how tensors are sorted. Those alike stay in the stored order.
type Order string

// The orders: as stored, by name, the largest first, by type and then the largest
// first.
const (
	ByStored Order = "order"
	ByName   Order = "name"
	BySize   Order = "size"
	ByDType  Order = "dtype"
)

// Options say what to look at.
type Options struct {
	Filter  string // glob of path.Match that names must match; "" for all
	Sort    Order  // "" for ByStored
	Stats   bool
	Workers int // that read tensors for Stats; 0 for one for each processor
}

// OptionError says that an option makes no sense.
type OptionError struct{ Option, Problem string }

func (e *OptionError) Error() string { return fmt.Sprintf("%s: %s", e.Option, e.Problem) }

func (o *Options) check() error {
	if _, err := path.Match(o.Filter, ""); err != nil {
		return &OptionError{"filter", fmt.Sprintf("%q is not a glob: %v", o.Filter, err)}
	}
	if o.Sort == "" {
		o.Sort = ByStored
	}
	if known := []Order{ByName, BySize, ByDType, ByStored}; !slices.Contains(known, o.Sort) {
		return &OptionError{"sort", fmt.Sprintf("%q is none of %v", o.Sort, known)}
	}
	return nil
}

// Checkpoint reports on the checkpoint at a path: any that loader.Open opens,
// folders that fettle wrote among them. Errors are those of loader.Open and
// *OptionError.
func Checkpoint(ctx context.Context, path string, o Options) (*Report, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	ckpt, err := loader.Open(ctx, path)
	if err != nil {
		return nil, err
	}
	defer ckpt.Close()
	r := &Report{
		Version: Version, Path: path, Format: string(ckpt.Format()), FileBytes: ckpt.Size(),
		Metadata: ckpt.Metadata(), Tensors: []Tensor{},
	}
	r.recognise(ckpt)
	r.list(ckpt, o.Filter)
	if len(r.Tensors) == 0 && o.Filter != "" {
		return nil, &OptionError{"filter", fmt.Sprintf("no tensor of %s matches %q", path, o.Filter)}
	}
	for _, s := range ckpt.Skipped() {
		r.Skipped = append(r.Skipped, Skipped(s))
	}
	r.sort(o.Sort)
	if o.Stats {
		return r, r.measure(ctx, ckpt, pool.New(o.Workers))
	}
	return r, nil
}

// list fills in tensors and sums.
func (r *Report) list(ckpt *loader.Checkpoint, filter string) {
	tied := ckpt.Tied()
	for _, t := range ckpt.Tensors() {
		if tied[t.Name] == "" {
			r.All.add(t.Elements(), t.StoredBytes())
		}
		r.All.Tensors++
	}
	share := func(bytes int64) float64 { return float64(bytes) / float64(max(r.All.Bytes, 1)) }
	r.All.Share = share(r.All.Bytes)
	groups, types := map[string]*Total{}, map[string]*Total{}
	sum := func(totals map[string]*Total, name string, t Tensor) {
		if totals[name] == nil {
			totals[name] = &Total{Name: name}
		}
		totals[name].Tensors++
		if t.TiedTo == "" {
			totals[name].add(t.Elements, t.Bytes)
		}
	}
	for _, t := range ckpt.Tensors() {
		if ok, _ := path.Match(filter, t.Name); filter != "" && !ok {
			continue
		}
		entry := Tensor{
			Name: t.Name, DType: cmp.Or(t.Encoding(), t.DType.String()), Shape: t.Shape,
			Elements: t.Elements(), Bytes: t.StoredBytes(), Group: groupOf(t.Name), TiedTo: tied[t.Name],
		}
		if entry.TiedTo == "" {
			entry.Share = share(entry.Bytes)
		}
		if entry.Shape == nil {
			entry.Shape = []int{}
		}
		r.Tensors = append(r.Tensors, entry)
		sum(groups, entry.Group, entry)
		sum(types, entry.DType, entry)
	}
	for _, t := range types {
		r.Listed.Tensors += t.Tensors
		r.Listed.add(t.Elements, t.Bytes)
	}
	r.Listed.Share = share(r.Listed.Bytes)
	sorted := func(totals map[string]*Total) []Total {
		list := []Total{}
		for _, t := range totals {
			t.Share = share(t.Bytes)
			list = append(list, *t)
		}
		slices.SortFunc(list, func(a, b Total) int { return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), cmp.Compare(a.Name, b.Name)) })
		return list
	}
	r.Groups, r.DTypes = sorted(groups), sorted(types)
}

func (t *Total) add(elements, bytes int64) {
	t.Elements += elements
	t.Bytes += bytes
}

// groupOf returns a tensor's module, with * for each part that is a number.
func groupOf(name string) string {
	parts := strings.Split(name, ".")
	if len(parts) > 1 {
		parts = parts[:len(parts)-1]
	}
	for i, part := range parts {
		if part != "" && strings.Trim(part, "0123456789") == "" {
			parts[i] = "*"
		}
	}
	return strings.Join(parts, ".")
}

func (r *Report) sort(by Order) {
	slices.SortStableFunc(r.Tensors, func(a, b Tensor) int {
		switch by {
		case ByName:
			return cmp.Compare(a.Name, b.Name)
		case BySize:
			return cmp.Compare(b.Bytes, a.Bytes)
		case ByDType:
			return cmp.Or(cmp.Compare(a.DType, b.DType), cmp.Compare(b.Bytes, a.Bytes))
		}
		return 0
	})
}

// recognise finds the architecture, how weights are compressed, and whether fettle
// wrote the checkpoint. What keeps it from these is a note: the tensors can be listed
// all the same.
func (r *Report) recognise(ckpt *loader.Checkpoint) {
	_, err := os.Stat(filepath.Join(r.Path, record.ManifestName))
	written, config := err == nil, readConfig(r.Path)
	stored, err := export.Decode(ckpt)
	if err == nil && stored != nil {
		ckpt, config, err = r.describe(stored, written)
	}
	switch {
	case err == nil && stored == nil && written:
		r.note("fettle wrote this folder, but it is damaged: its %s is gone, or says nothing of compressed weights", export.ConfigName)
		return
	case err != nil && written:
		r.note("fettle wrote this folder, but it is damaged: %v", err)
		return
	case err != nil:
		r.note("%v", err)
		return
	}
	if stored != nil && written {
		r.Architecture = stored.Architecture()
		return
	}
	graph, err := model.Build(ckpt.Tensors(), model.Options{Config: config})
	if err == nil {
		r.Architecture = graph.Architecture
		return
	}
	if name := r.Metadata["general.architecture"]; ckpt.Format() == loader.GGUF && name != "" {
		r.Architecture = name
		return
	}
	if unsupported, ok := errors.AsType[*model.UnsupportedError](err); ok {
		if r.Architecture = unsupported.Architecture; r.Architecture != "" {
			r.note("fettle cannot run this architecture; it knows %s", strings.Join(unsupported.Known, ", "))
		}
		return
	}
	if t, ok := errors.AsType[*model.TensorError](err); ok {
		r.Architecture = t.Architecture
	}
	r.note("%v", err)
}

// describe says how weights are compressed, and returns what a model is built from.
func (r *Report) describe(stored *export.Model, written bool) (view *loader.Checkpoint, config []byte, err error) {
	if view, err = stored.View(); err != nil {
		return nil, nil, err
	}
	by := map[string]*Encoded{}
	compressed := 0
	for _, t := range view.Tensors() {
		d := t.Decoded()
		if d == nil {
			continue
		}
		compressed++
		if by[d.Encoding] == nil {
			by[d.Encoding] = &Encoded{Encoding: d.Encoding}
		}
		e := by[d.Encoding]
		e.Weights++
		e.Elements += t.Elements()
		e.Bytes += d.Bytes
	}
	for _, name := range slices.Sorted(maps.Keys(by)) {
		r.Compressed = append(r.Compressed, *by[name])
	}
	if stored.Activations() {
		r.note("the config quantizes activations too; that takes place when the model runs")
	}
	if written {
		r.Written = &Written{Compressed: compressed}
		for _, t := range stored.Tensors() {
			r.Written.DenseBytes += t.Bytes()
		}
	}
	config, err = stored.SourceConfig()
	return view, config, err
}

func (r *Report) note(format string, args ...any) {
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
}

// maxConfig bounds a config.json in bytes.
const maxConfig = 16 << 20

// readConfig returns the config.json of a model's folder; nil for a file, and where
// there is none that can be read.
func readConfig(path string) []byte {
	path = filepath.Join(path, export.ConfigName)
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() || info.Size() > maxConfig {
		return nil
	}
	config, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	return config
}
