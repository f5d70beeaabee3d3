package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/fettle-dev/fettle/export"
	"github.com/fettle-dev/fettle/internal/atomicfile"
	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/internal/pool"
	"github.com/fettle-dev/fettle/internal/scratch"
	"github.com/fettle-dev/fettle/loader"
	"github.com/fettle-dev/fettle/model"
	"github.com/fettle-dev/fettle/record"
)

// Options are what a run needs beside its recipe. None of them changes the
// bytes of what is written.
type Options struct {
	Workers int          // 0 means one for each processor
	Memory  int64        // ceiling in bytes, see Plan.Memory; 0 means none
	Cache   string       // folder that units are kept in; "" keeps none
	Version string       // of the program, for the record
	Events  func(Event)  // progress; may be nil
	Logger  *slog.Logger // details for debugging; may be nil

	// Finish is called when the output folder is complete but for what the
	// caller adds to it, such as a report, and before it gets its name. An
	// error leaves no folder behind. May be nil.
	Finish func(dir string, run *record.Run) error
}

// OutputError says that the output cannot be written where it was asked for.
type OutputError struct {
	Path string
	Err  error
}

func (e *OutputError) Error() string {
	if errors.Is(e.Err, fs.ErrExist) {
		return fmt.Sprintf("output folder %s exists; remove it or name another", e.Path)
	}
	return fmt.Sprintf("output folder %s cannot be written: %s", e.Path, errText(e.Err))
}

func (e *OutputError) Unwrap() error { return e.Err }

// NonFiniteError says that a tensor holds a NaN or an infinity.
type NonFiniteError struct {
	Tensor string
	Index  int
	Value  float64
}

func (e *NonFiniteError) Error() string {
	return fmt.Sprintf("tensor %s holds %v at index %d; such a model cannot be compressed", e.Tensor, e.Value, e.Index)
}

// workName is the folder within the output's temporary one that units are kept
// in when there is no cache.
const workName = ".work"

// run is one run under way.
type run struct {
	recipe  *Recipe
	options Options
	pool    *pool.Pool
	store   *store // the cache
	kept    *store // of what this run itself reads again: the cache, or a folder of the run's own
	space   *scratch.Space
	clock   clock
	record  *record.Run

	original *original
	cuts     []cut        // what is removed of it
	chosen   []unitChoice // by cut, without the weights
	file     *os.File     // repaired tensors; nil where there are none

	// What is compressed: what removals leave of the original.
	ckpt   *loader.Checkpoint
	graph  *model.Graph
	config []byte // its config.json; nil where there is none
	own    string // why other readers cannot have it; "" where they can
	sha    string // of ckpt

	routings  map[int]*routing // by the value of a router's weights; nil without experts or data
	fewTokens []fewTokens

	shares      map[string]int64  // bytes of the source that removals leave of each tensor
	cutStored   map[string]string // how weights were stored of which removals take a part, by name
	search      *record.Search    // that chose the recipe's rules; nil for none
	plan        *Plan
	calibration samples   // nil when no method needs data and none is given
	evaluation  samples   // nil when none is given
	captured    *captured // nil when no file of moments is given
	weights     *weights
}

func newRun(recipe *Recipe, o Options) *run {
	if o.Events == nil {
		o.Events = func(Event) {}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &run{
		recipe: recipe, options: o, pool: pool.New(o.Workers), store: &store{dir: o.Cache},
		clock: newClock(o.Events),
	}
}

// Run compresses a model as the recipe says and returns the record of it. The
// output folder appears whole or not at all. Every fault that can be found
// before work starts is found then.
//
// Errors: *RecipeError, *OutputError, *FallbackError, *InputError,
// *NonFiniteError, *CacheError, ErrNothingToDo, those of package loader, model
// and dataset, and the context's.
//
// A recipe with a search for one size is searched first. For several sizes there are
// Find and Found.Run.
func Run(ctx context.Context, recipe *Recipe, o Options) (*record.Run, error) {
	if recipe.Search == nil {
		return runRecipe(ctx, recipe, o, nil)
	}
	if err := recipe.checkFit(); err != nil {
		return nil, err
	}
	if n := len(recipe.Search.Fit); n != 1 {
		return nil, &RecipeError{File: recipe.file, Where: "search.fit", Reason: fmt.Sprintf("has %d sizes, and one model is to be written; fettle search writes one for each", n)}
	}
	if err := recipe.checkOutput(); err != nil {
		return nil, err
	}
	found, err := Find(ctx, recipe, o)
	if err != nil {
		return nil, err
	}
	return found.Run(ctx, 0, o)
}

// runRecipe compresses as a recipe without a search says. found is the search that
// made it, or nil.
func runRecipe(ctx context.Context, recipe *Recipe, o Options, found *record.Search) (*record.Run, error) {
	r := newRun(recipe, o)
	r.search = found
	o = r.options
	folder, err := r.open(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err := folder.Discard(); err != nil {
			o.Logger.Warn("temporary output folder stays behind", "error", err)
		}
	}()
	defer r.close()
	defer r.space.Close()
	if err := r.compress(ctx); err != nil {
		return nil, err
	}
	r.space.Close() // what the streams still held
	if err := r.write(ctx, folder.Temp); err != nil {
		return nil, err
	}
	if err := r.evaluate(ctx, folder.Temp); err != nil {
		return nil, err
	}
	if err := os.RemoveAll(filepath.Join(folder.Temp, workName)); err != nil {
		return nil, &OutputError{Path: recipe.Output.Path, Err: err}
	}
	if err := r.finish(ctx, folder); err != nil {
		return nil, err
	}
	return r.record, nil
}

// open checks everything that can be checked without computing, and makes the
// folder that output is gathered in.
func (r *run) open(ctx context.Context) (folder *atomicfile.Folder, err error) {
	r.clock.enter(StageOpen)
	if err := r.recipe.checkOutput(); err != nil {
		return nil, err
	}
	if err := r.makePlan(ctx, true, true); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = r.close() // only read from
			r.space.Close()
		}
	}()
	if folder, err = atomicfile.NewFolder(r.recipe.Output.Path); err != nil {
		return nil, &OutputError{Path: r.recipe.Output.Path, Err: err}
	}
	defer func() {
		if err != nil {
			_ = folder.Discard() // empty so far
		}
	}()
	if err := model.CheckCopies(ctx, r.original.graph, model.Stored(r.original.ckpt)); err != nil {
		return nil, fmt.Errorf("%s: %w", r.recipe.Model.Path, err)
	}
	r.kept = r.store
	if r.store.dir == "" {
		r.kept = &store{dir: filepath.Join(folder.Temp, workName)}
	}
	r.weights.store = r.kept
	return folder, r.startRecord(ctx)
}

// checkOutput refuses an output folder that is not named, or is there.
func (r *Recipe) checkOutput() error {
	if r.Output.Path == "" {
		return &RecipeError{File: r.file, Where: "output.path", Reason: "is missing; name the output folder there or on the command line"}
	}
	if _, err := os.Lstat(r.Output.Path); err == nil {
		return &OutputError{Path: r.Output.Path, Err: fs.ErrExist}
	}
	return nil
}

// close closes what the model is read from.
func (r *run) close() error {
	r.captured.close()
	if r.file != nil {
		_ = r.file.Close()
		_ = os.Remove(r.file.Name()) // unless it is gone already
	}
	return r.original.files.Close()
}

func (r *run) startRecord(ctx context.Context) (err error) {
	if r.sha, err = r.original.hash(ctx); err != nil {
		return err
	}
	sha := r.sha
	if r.original.ckpt != r.original.files { // the record has the files' own
		if sha, err = r.original.files.SHA256(ctx); err != nil {
			return err
		}
	}
	if r.ckpt != r.original.ckpt {
		if r.sha, err = r.ckpt.SHA256(ctx); err != nil {
			return err
		}
	}
	r.record = &record.Run{
		Version: record.Version,
		Tool: record.Tool{
			Name: "fettle", Version: r.options.Version, Go: runtime.Version(),
			OS: runtime.GOOS, Arch: runtime.GOARCH, Kernels: blas.Kernels, Workers: r.pool.Workers(),
		},
		Started: time.Now().UTC().Truncate(time.Second),
		Recipe:  record.Recipe{Path: r.recipe.file, SHA256: r.recipe.SHA256(), Text: r.recipe.text},
		Source: record.Source{
			Path: r.ckpt.Path(), Format: string(r.ckpt.Format()), Bytes: r.ckpt.Size(), SHA256: sha,
			Architecture: r.graph.Architecture, Tensors: len(r.original.ckpt.Tensors()), UnknownClasses: r.ckpt.UnknownClasses(),
		},
		Sequential: r.recipe.Sequential, Search: r.search,
		Units: record.Units{Dir: r.options.Cache},
	}
	if unknown := r.ckpt.UnknownClasses(); len(unknown) > 0 {
		r.clock.emit(Event{Warning: fmt.Sprintf("%s names classes that fettle does not know (%s); none of them was run", r.ckpt.Path(), strings.Join(unknown, ", "))})
	}
	for _, t := range r.original.ckpt.Tensors() {
		r.record.Source.Parameters += t.Elements()
	}
	r.recordRemoved()
	r.recordExperts()
	for _, text := range r.plan.Notes {
		r.clock.emit(Event{Warning: text})
	}
	for _, t := range r.plan.Kept {
		r.record.Kept = append(r.record.Kept, r.keptRecord(t))
	}
	r.record.Data = append(r.record.Data, dataRecord("calibration", r.recipe.Calibration, r.calibration)...)
	if c := r.captured; c != nil {
		r.record.Data = append(r.record.Data, record.Data{Role: "moments", Path: c.path, Format: string(c.ckpt.Format()), SHA256: c.sha})
	}
	r.record.Data = append(r.record.Data, dataRecord("evaluation", r.recipe.Evaluate, r.evaluation)...)
	return nil
}

func (r *run) exportInput() export.Input {
	return export.Input{
		Checkpoint: r.ckpt, Source: r.original.stored, Specs: r.plan.specs(), Replaced: r.weights.replaced,
		Solution:  r.weights.solution,
		ShardSize: r.recipe.Output.shardSize,
		Config:    r.config, Architecture: r.graph.Architecture, Tool: "fettle",
	}
}

// write writes the compressed model, and the dense one where asked for, and
// reads both back.
func (r *run) write(ctx context.Context, dir string) error {
	r.clock.enter(StageWrite)
	files, err := export.CompressedTensors(ctx, dir, r.exportInput())
	if err != nil {
		return r.outputError(ctx, err)
	}
	carried, err := export.Carry(ctx, dir, r.recipe.Model.Path)
	if err != nil {
		return r.outputError(ctx, err)
	}
	files = append(files, carried...)
	for _, format := range r.recipe.Output.Dense {
		dense, err := export.Dense(ctx, dir, export.DenseFormat(format), r.exportInput())
		if err != nil {
			return r.outputError(ctx, err)
		}
		files = append(files, dense...)
	}
	r.clock.enter(StageVerify)
	if err := export.Verify(ctx, dir, r.exportInput()); err != nil {
		return err
	}
	for i := range r.record.Kept {
		_, r.record.Kept[i].Changed = r.weights.replaced[r.record.Kept[i].Name]
	}
	out := &r.record.Output
	out.Format, out.Files, out.AverageBits = r.recipe.Output.Format, files, r.plan.AverageBits()
	var written int64
	for _, f := range files {
		written += f.Bytes
		if f.Role == "weights" {
			out.WeightBytes += f.Bytes
		}
	}
	r.clock.addBytes(StageWrite, written)
	r.clock.addBytes(StageVerify, out.WeightBytes)
	if out.WeightBytes != r.plan.WeightBytes {
		return fmt.Errorf("the plan foretold %d bytes of weights and %d were written; please report this", r.plan.WeightBytes, out.WeightBytes)
	}
	out.Ratio = float64(out.WeightBytes) / float64(r.record.Source.Bytes)
	return nil
}

// outputError tells a fault of the output folder from one of the input.
func (r *run) outputError(ctx context.Context, err error) error {
	var p *fs.PathError
	if ctx.Err() == nil && errors.As(err, &p) {
		return &OutputError{Path: r.recipe.Output.Path, Err: err}
	}
	return err
}

// finish writes the record and the manifest and gives the folder its name.
func (r *run) finish(ctx context.Context, folder *atomicfile.Folder) error {
	r.clock.enter(StageWrite)
	dir := folder.Temp
	digest, err := export.WriteManifest(dir, r.record.Source.SHA256, r.record.Recipe.SHA256, r.record.Output.Files)
	if err != nil {
		return r.outputError(ctx, err)
	}
	r.record.Output.ManifestSHA256 = digest
	r.record.Units.Reused, r.record.Units.Computed = r.store.reused, r.store.computed
	r.record.Stages, r.record.Seconds = r.clock.stages()
	r.record.PeakRSS = peakRSS()
	m := r.plan.Memory
	r.record.Memory = record.Memory{Ceiling: r.options.Memory, Fixed: m.Fixed, Activations: m.Activations, Filed: r.space.FilePeak()}
	if err := writeRecord(dir, r.record); err != nil {
		return r.outputError(ctx, err)
	}
	if r.options.Finish != nil {
		if err := r.options.Finish(dir, r.record); err != nil {
			return r.outputError(ctx, err)
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := folder.Commit(); err != nil {
		return &OutputError{Path: r.recipe.Output.Path, Err: err}
	}
	return nil
}
