// Package record is everything that a run of fettle did and measured, as
// versioned JSON. It knows nothing of who reads it: reports, gates, and other
// people's scripts.
//
// Sizes are bytes of real files; ratios are to the source file. The manifest
// holds what must not depend on workers or machines, so timings, paths and
// versions stand here and never there.
package record

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// Version is the version of the record's layout. It grows when a field changes
// its meaning or goes; new fields leave it as it is.
const Version = 1

// The names of the files in an output folder.
const (
	FileName     = "record.json"
	ManifestName = "manifest.json"
	ReportName   = "report.html"
)

// Run is the record of one compression.
type Run struct {
	Version    int       `json:"version"`
	Tool       Tool      `json:"tool"`
	Started    time.Time `json:"started"`
	Recipe     Recipe    `json:"recipe"`
	Source     Source    `json:"source"`
	Data       []Data    `json:"data"`
	Sequential string    `json:"sequential"`        // value or none
	Search     *Search   `json:"search,omitempty"`  // nil where the recipe says what each layer gets
	Removed    []Removed `json:"removed,omitempty"` // before anything else was done
	// Experts is what experts saw of the calibration data; nil for a model without.
	Experts *Experts `json:"experts,omitempty"`
	// RemovedBytes is by how much Removed makes the source's tensors smaller.
	RemovedBytes int64       `json:"removed_bytes,omitempty"`
	Layers       []Layer     `json:"layers"` // in the order of the data
	Kept         []Tensor    `json:"kept"`   // not compressed: written as they were, unless Changed
	Output       Output      `json:"output"`
	Evaluation   *Evaluation `json:"evaluation,omitempty"`
	Units        Units       `json:"units"`
	Stages       []Stage     `json:"stages"`
	Seconds      float64     `json:"seconds"`
	PeakRSS      int64       `json:"peak_rss_bytes"` // of the process; 0 where the system does not say
	Memory       Memory      `json:"memory"`
}

// Tool says what made the record, and on what.
type Tool struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	Go      string `json:"go"`
	OS      string `json:"os"`
	Arch    string `json:"arch"`
	Kernels string `json:"kernels"` // the path that the matrix kernels took
	Workers int    `json:"workers"`
}

// Recipe is what was asked for, whole.
type Recipe struct {
	Path   string `json:"path,omitempty"`
	SHA256 string `json:"sha256"`
	Text   string `json:"text"`
}

// Source is the checkpoint that went in.
type Source struct {
	Path           string   `json:"path"`
	Format         string   `json:"format"`
	Bytes          int64    `json:"bytes"`
	SHA256         string   `json:"sha256"`
	Architecture   string   `json:"architecture"`
	Tensors        int      `json:"tensors"`
	Parameters     int64    `json:"parameters"`
	UnknownClasses []string `json:"unknown_classes,omitempty"` // in a pickle: met, not run
}

// Data is a set of samples that was used.
type Data struct {
	Role    string `json:"role"` // calibration, moments (of layers' inputs, from elsewhere), evaluation or search
	Path    string `json:"path"`
	Format  string `json:"format"`
	Samples int    `json:"samples"`
	Of      int    `json:"of"` // samples that the file holds
	Seed    *int64 `json:"seed,omitempty"`
	SHA256  string `json:"sha256"` // of the samples used, in their order

	// Of text and token ids, whose samples are documents or pieces of them.
	Sequences int   `json:"sequences,omitempty"` // that went through the model
	Tokens    int64 `json:"tokens,omitempty"`    // in all sequences
	Length    int   `json:"length,omitempty"`    // most tokens of a sequence
	Stride    int   `json:"stride,omitempty"`    // of windows over long sequences

	TokenizerSHA256 string `json:"tokenizer_sha256,omitempty"` // of tokenizer.json, for text
}

// Memory is what a run foretold and had, in bytes.
type Memory struct {
	Ceiling     int64 `json:"ceiling,omitempty"`     // asked for; 0 for none
	Fixed       int64 `json:"fixed"`                 // foretold at most: weights, moments and solvers
	Activations int64 `json:"activations,omitempty"` // foretold at most: both streams' values
	Filed       int64 `json:"filed,omitempty"`       // most bytes of values that lay in files
}

// Removed is a part of the model that went, or that lost units, before what is left
// was compressed.
type Removed struct {
	// Kind is block, attention or mlp, which go as a whole, or says what units are:
	// kv_group, query_head or channel.
	Kind  string `json:"kind"`
	Name  string `json:"name"`
	Kept  int    `json:"kept"` // units that stay; 0 where the part went as a whole
	Units int    `json:"units"`
	// Bytes are what the units have of tensors. Those of parts that share a tensor
	// count twice where they cross.
	Bytes    int64  `json:"bytes"`
	Score    string `json:"score,omitempty"`
	Repaired bool   `json:"repaired,omitempty"` // what stays makes up for what went

	// Errors of the layers that read the units, as those of a Layer. Plain is
	// without repair. Absent without data.
	RelativeError      *float64 `json:"relative_error,omitempty"`
	PlainRelativeError *float64 `json:"plain_relative_error,omitempty"`
}

// Experts is what the experts of a model saw of the calibration data, in the original
// model, and what became of those that saw too little.
type Experts struct {
	Mixtures []Mixture `json:"mixtures"` // in the order of the data
	// MinTokens is how many tokens an expert's layer was to see; where it is 0, so
	// many for each of the layer's inputs.
	MinTokens int    `json:"min_tokens,omitempty"`
	PerInput  int    `json:"min_tokens_per_input,omitempty"`
	Fallback  string `json:"fallback"` // what the others get: nearest or keep
	// Layers are those that saw fewer and for which that is something else than
	// what the recipe's rules say.
	Layers []ExpertLayer `json:"layers,omitempty"`
}

// Mixture is a router with its experts. A token goes to several, so the sum of
// Tokens is a multiple of how many there are.
type Mixture struct {
	Name   string  `json:"name"`
	Block  int     `json:"block"`
	Tokens []int64 `json:"tokens"` // by expert
}

// ExpertLayer is a layer of an expert that saw too few tokens.
type ExpertLayer struct {
	Layer string `json:"layer"`
	Fallback
}

// Layer is one compressed layer.
type Layer struct {
	Name       string `json:"name"`   // as rules match it
	Weight     string `json:"weight"` // the weight tensor's name
	Kind       string `json:"kind"`
	Shape      []int  `json:"shape"`
	Parameters int64  `json:"parameters"`
	Fusion     string `json:"fusion,omitempty"` // layers of the same one must have one format

	// Of a layer that is quantized. One that is only pruned has no Method and 0
	// Bits.
	Method      string  `json:"method"`
	Format      string  `json:"format,omitempty"` // fp8, nvfp4, mxfp4; "" is integers
	Bits        int     `json:"bits"`
	Granularity string  `json:"granularity"`
	GroupSize   int     `json:"group_size,omitempty"`
	Symmetric   bool    `json:"symmetric"`
	Aligned     bool    `json:"aligned"`
	Damping     float64 `json:"damping,omitempty"` // relative to the mean of H's diagonal

	Scaled bool `json:"scaled,omitempty"` // AWQ's scales multiply the weight, and divide what it reads

	Prune      *Prune      `json:"prune,omitempty"`      // nil where nothing is pruned
	Compensate *Compensate `json:"compensate,omitempty"` // nil where nothing is added

	SourceBytes int64  `json:"source_bytes"`
	Bytes       int64  `json:"bytes"`            // of all tensors that replace the weight, without the header
	Layout      string `json:"layout,omitempty"` // how a pruned weight is stored, e.g. "bitmask"; "" is dense

	// Errors on the calibration data, relative to the energy of the layer's
	// original outputs. Absent when the method used no data.
	RelativeError        *float64 `json:"relative_error,omitempty"`
	NearestRelativeError *float64 `json:"nearest_relative_error,omitempty"`
	SoftRelativeError    *float64 `json:"soft_relative_error,omitempty"`
	// RelativeWeightError is ‖W − Ŵ‖²/‖W‖², where no data was used.
	RelativeWeightError *float64 `json:"relative_weight_error,omitempty"`
	// BoundRelativeError is what RelativeError cannot exceed, where the method's
	// theory knows it: gpfq and spfq.
	BoundRelativeError *float64 `json:"bound_relative_error,omitempty"`

	Cached    bool       `json:"cached"` // the solution was on disk from an earlier run
	Seconds   float64    `json:"seconds"`
	Fallbacks []Fallback `json:"fallbacks,omitempty"`
}

// Prune is what was pruned of a layer.
type Prune struct {
	Method     string  `json:"method"`
	Pattern    string  `json:"pattern"`              // unstructured, 2:4, block 4x4, …
	Scope      string  `json:"scope,omitempty"`      // of an unstructured pattern: layer or row
	Allocation string  `json:"allocation,omitempty"` // what gave the layer its share: uniform, lamp, …
	Survivors  int64   `json:"survivors"`
	Sparsity   float64 `json:"sparsity"` // 1 − survivors/weights
	// RelativeError is that of the pruned layer before it was quantized or
	// compensated. Absent without calibration data.
	RelativeError *float64 `json:"relative_error,omitempty"`
}

// Compensate is the low-rank term that was added to a layer.
type Compensate struct {
	Method  string `json:"method"` // eora, svd, scaled-svd
	Rank    int    `json:"rank"`
	Factors string `json:"factors"` // how they are stored, e.g. F16 or 4 bits
	Bytes   int64  `json:"bytes"`   // of both factors; they count in the layer's Bytes too
	Merged  bool   `json:"merged,omitempty"`
	// RelativeError is the layer's before the term was added.
	RelativeError *float64 `json:"relative_error,omitempty"`
}

// Fallback says where a layer did not get what the recipe asked for.
type Fallback struct {
	Asked  string `json:"asked"`
	Got    string `json:"got"`
	Reason string `json:"reason"`
}

// Tensor is a tensor that no rule matched, or that is no layer's weight.
type Tensor struct {
	Name  string `json:"name"`
	DType string `json:"dtype"`
	Shape []int  `json:"shape"`
	Bytes int64  `json:"bytes"`
	// Stored says how the source has it compressed already, such as "GPTQ 4 bits g128";
	// it is written as it is stored. DType is then that of its values or scales.
	Stored string `json:"stored,omitempty"`
	// Changed says that its values changed with a layer's: a bias or normalization
	// that took a correction, or AWQ's scales.
	Changed bool `json:"changed,omitempty"`
}

// Output is what was written.
type Output struct {
	Format         string  `json:"format"`
	Files          []File  `json:"files"`
	WeightBytes    int64   `json:"weight_bytes"` // the compressed weight files, whole
	Ratio          float64 `json:"ratio"`        // WeightBytes / Source.Bytes
	AverageBits    float64 `json:"average_bits"` // of the compressed layers, scales and zero points included
	ManifestSHA256 string  `json:"manifest_sha256"`
}

// File is a file of the output folder.
type File struct {
	Name   string `json:"name"`
	Role   string `json:"role"` // weights, config or dense
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
}

// Evaluation compares the two models on the same samples.
type Evaluation struct {
	Samples    int     `json:"samples"`
	Original   Metrics `json:"original"`
	Compressed Metrics `json:"compressed"`

	// KL is the mean over samples of KL(original ‖ compressed) in nats.
	KL float64 `json:"kl"`
	// Changed counts the samples whose predicted class differs.
	Changed int `json:"changed"`
	// AccuracyDrop is original minus compressed top-1, in points; Interval is
	// its 95 % paired-bootstrap interval. Tied means that it holds 0.
	AccuracyDrop float64    `json:"accuracy_drop"`
	Interval     [2]float64 `json:"accuracy_drop_interval"`
	Tied         bool       `json:"tied"`

	// Language is what language models are compared by. Where it is there, only
	// Samples of the fields above counts.
	Language *LanguageEvaluation `json:"language,omitempty"`
	// Outputs is what models are compared by that predict neither an image's class
	// nor the next token. Where it is there, only Samples of the fields above counts.
	Outputs *OutputEvaluation `json:"outputs,omitempty"`
}

// OutputEvaluation compares two models by their outputs alone, with nothing to hold
// them against but each other.
type OutputEvaluation struct {
	// Task is token_classes (logits at each token, as a masked language model's),
	// sequence_classes (logits for each sequence) or features (other numbers).
	Task string `json:"task"`
	Rows int64  `json:"rows"` // tokens, sequences or images that were compared

	// Of logits: the mean over rows of KL(original ‖ compressed) in nats, and the
	// percentage of rows where both models have the same largest one.
	KL        *float64 `json:"kl,omitempty"`
	Agreement *float64 `json:"agreement,omitempty"`
	// RelativeError is, of features, the squared error of the compressed model's
	// outputs over the energy of the original's.
	RelativeError *float64 `json:"relative_error,omitempty"`
}

// LanguageEvaluation compares two language models by how they predict the same
// tokens. Without Compressed it is of the original alone, and what follows
// Compressed means nothing.
type LanguageEvaluation struct {
	Documents int   `json:"documents"`
	Tokens    int64 `json:"tokens"`          // predicted
	Bytes     int64 `json:"bytes,omitempty"` // of the text behind them, in UTF-8, where it is known

	Original   LanguageMetrics  `json:"original"`
	Compressed *LanguageMetrics `json:"compressed,omitempty"`

	// KL is the mean over tokens of KL(original ‖ compressed) in nats. Where the
	// original's answers came from a cache of its most likely tokens alone, KL is
	// the least that it can be, and KLBounds hold it between two numbers.
	KL       float64     `json:"kl"`
	KLBounds *[2]float64 `json:"kl_bounds,omitempty"`
	// Agreement is the percentage of tokens for which both models find the same
	// one most likely.
	Agreement float64 `json:"agreement"`
	// LossIncrease is compressed minus original loss. Interval is its 95 % paired
	// bootstrap interval over documents, absent where there is only one. Tied
	// means that it holds 0.
	LossIncrease float64     `json:"loss_increase"`
	Interval     *[2]float64 `json:"loss_increase_interval,omitempty"`
	Tied         bool        `json:"tied"`
}

// LanguageMetrics are one language model's.
type LanguageMetrics struct {
	Loss         float64 `json:"loss"`          // mean over tokens of −log p, in nats
	DocumentLoss float64 `json:"document_loss"` // mean over documents of their means
	// Perplexity is e to the Loss, at most the largest float64.
	Perplexity  float64 `json:"perplexity"`
	BitsPerByte float64 `json:"bits_per_byte,omitempty"` // where Bytes is known
}

// Metrics are one model's.
type Metrics struct {
	Correct int     `json:"correct"`
	Top1    float64 `json:"top1"` // percent
	Loss    float64 `json:"loss"` // mean cross-entropy in nats
}

// Units counts the finished pieces of work that were found on disk.
type Units struct {
	Dir      string `json:"dir,omitempty"`
	Reused   int    `json:"reused"`
	Computed int    `json:"computed"`
}

// Stage is a part of the run. Seconds of stages do not overlap.
type Stage struct {
	Name    string  `json:"name"`
	Seconds float64 `json:"seconds"`
	Bytes   int64   `json:"bytes,omitempty"` // read or written by it
}

// Manifest lists what was written, with nothing that a second run on another
// machine or with other workers would write differently.
type Manifest struct {
	Version int    `json:"version"`
	Source  string `json:"source_sha256"`
	Recipe  string `json:"recipe_sha256"`
	Files   []File `json:"files"`
}

// Encode writes v as indented JSON with a newline at the end.
func Encode(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// ErrVersion says that a record was written by a version that this one cannot
// read.
var ErrVersion = errors.New("record has another version")

// Decode reads a run's record.
func Decode(r io.Reader) (*Run, error) {
	var run Run
	d := json.NewDecoder(r)
	if err := d.Decode(&run); err != nil {
		return nil, fmt.Errorf("record: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("record: something follows it in the file")
	}
	if run.Version != Version {
		return nil, fmt.Errorf("%w: found %d, this fettle reads %d", ErrVersion, run.Version, Version)
	}
	return &run, nil
}
