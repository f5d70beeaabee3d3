package pipeline

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/fettle-dev/fettle/dataset"
	"github.com/fettle-dev/fettle/internal/blas"
	"github.com/fettle-dev/fettle/layer"
	"github.com/fettle-dev/fettle/model"
	"github.com/fettle-dev/fettle/record"
	"github.com/fettle-dev/fettle/search"
	"github.com/fettle-dev/fettle/search/fitness"
)

// Found is what a search has found: for each size a recipe that gives each layer
// its level, with rules alone.
type Found struct {
	Recipes []*Recipe // in the order of Search.Fit
	Record  *record.Search
}

// SearchProgress is how far a search is, in an Event.
type SearchProgress struct {
	Fit                     string // the size that is searched for
	Generation, Generations int    // 0: the start was chosen
	Fitness                 float64
	Bytes, Budget           int64
	Improved                bool
	Left                    time.Duration // foretold, for this size
}

// searchVersion is part of the keys of what searches keep; it grows when an equal
// search would go another way.
const searchVersion = 1

// finder is a search under way.
type finder struct {
	run     *run
	levels  *database
	asked   *Search
	genes   []gene
	data    samples // that candidates are measured on
	model   *fitness.Evaluator
	unit    string // tokens or images
	samples int    // for errors and results
	began   time.Time
	temp    string          // folder of units where there is no cache
	runs    map[string]bool // by the genes that are dropped: whether what is left is a model
}

// Space says what a search may choose among, before any work is done.
type Space struct {
	Architecture string
	SourceBytes  int64
	Genes        []record.SearchGene
	Smallest     int64 // bytes of the weight files, at most
	Largest      int64
	Budgets      []int64 // of each size that was asked for
	Notes        []string
}

// MakeSpace opens the model of a recipe with a search and says what that may choose
// among.
func MakeSpace(ctx context.Context, recipe *Recipe, o Options) (*Space, error) {
	if err := recipe.checkFit(); err != nil {
		return nil, err
	}
	r := newRun(recipe, o)
	if err := r.makePlan(ctx, recipe.allocatesOnData(), len(recipe.Remove) > 0); err != nil {
		return nil, err
	}
	defer r.close()
	defer r.space.Close()
	genes, err := r.findGenes()
	if err != nil {
		return nil, err
	}
	budgets, err := r.budgets(genes)
	if err != nil {
		return nil, err
	}
	s := &Space{Architecture: r.graph.Architecture, SourceBytes: r.original.ckpt.Size(), Budgets: budgets, Notes: r.plan.Notes}
	s.Genes, s.Smallest, s.Largest, err = r.describe(genes, nil)
	return s, err
}

// Find searches for the levels of a recipe's layers that fit its sizes. What it does
// is kept in the cache: a search that was stopped goes on where it was and finds what
// it would have found.
//
// Errors: those of Run, *search.BudgetError for sizes that cannot be met, and
// *fitness.Error.
func Find(ctx context.Context, recipe *Recipe, o Options) (*Found, error) {
	if err := recipe.checkFit(); err != nil {
		return nil, err
	}
	if recipe.Calibration == nil && recipe.Search.Data == nil {
		return nil, &RecipeError{File: recipe.file, Where: "calibration", Reason: "is missing, and a search measures candidates on data; name some there, with --calibration, or as search.data"}
	}
	r := newRun(recipe, o)
	r.clock.enter(StageOpen)
	if err := r.makePlan(ctx, true, true); err != nil {
		return nil, err
	}
	defer r.close()
	defer r.space.Close()
	f := &finder{run: r, asked: recipe.Search, began: time.Now(), runs: map[string]bool{}}
	defer f.close()
	if err := f.open(ctx); err != nil {
		return nil, err
	}
	return f.find(ctx)
}

func (f *finder) close() {
	if f.model != nil {
		f.model.Close()
	}
	if f.temp != "" {
		_ = os.RemoveAll(f.temp) // in the system's folder of temporary files
	}
}

// open finds all faults that show without work, and makes the database.
func (f *finder) open(ctx context.Context) (err error) {
	r := f.run
	if f.genes, err = r.findGenes(); err != nil {
		return err
	}
	if err := f.checkBudgets(); err != nil {
		return err
	}
	if err := model.CheckCopies(ctx, r.original.graph, model.Stored(r.original.ckpt)); err != nil {
		return fmt.Errorf("%s: %w", r.recipe.Model.Path, err)
	}
	if r.sha, err = r.ckpt.SHA256(ctx); err != nil {
		return err
	}
	r.kept = r.store
	if r.store.dir == "" {
		if f.temp, err = os.MkdirTemp("", "fettle-search-"); err != nil {
			return &CacheError{Dir: os.TempDir(), Err: err}
		}
		r.kept = &store{dir: f.temp}
	}
	r.weights.store = r.kept
	f.data = r.calibration
	if d := f.asked.Data; d != nil {
		if f.data, err = openSamples(ctx, r.recipe, d, r.graph); err != nil {
			return err
		}
		if overlap(d, r.recipe.Evaluate) {
			r.clock.emit(Event{Warning: "evaluation samples come from the same part of the same file as those of the search; figures will flatter the result"})
		}
	}
	if err := f.openModel(); err != nil {
		return err
	}
	if err := f.checkStages(); err != nil {
		return err
	}
	if f.levels, err = r.build(ctx); err != nil {
		return err
	}
	for i := range f.genes {
		g := &f.genes[i]
		for k := range g.levels {
			for _, l := range g.layers[k] {
				if reason := r.plan.Layers[l].leftOut; reason != "" {
					g.usable[k] = reason
				}
			}
		}
	}
	return nil
}

// openModel makes what measures candidates. Levels are read from the database when
// they are asked for.
func (f *finder) openModel() (err error) {
	r := f.run
	m := fitness.Model{
		Graph: r.graph, Weights: r.weights.original, Rows: r.ckpt.ReadRowFloat32,
		Level: func(_ context.Context, gene, level int) (fitness.Variant, error) {
			return f.levels.variant(&f.genes[gene], level)
		},
	}
	tensors := &database{compression: newCompression(r)}
	for i := range f.genes {
		g := fitness.Gene{Tensors: tensors.tensors(&f.genes[i])}
		if s := f.genes[i].site; s != nil {
			g.Site = s.Ops
		}
		m.Genes = append(m.Genes, g)
	}
	var data fitness.Data
	f.unit, f.samples = "images", 4096
	switch s := f.data.(type) {
	case imageSamples:
		data.Images = s.Images
	case textSamples:
		f.unit, f.samples = "tokens", 131072
		data.Sequences = sequences(s.Sequences)
	}
	f.model, err = fitness.New(r.pool, r.space, m, data, fitness.Options{
		Measure: fitness.Measure(f.asked.Fitness), TopK: f.asked.TopK, Cache: f.levelCache(),
	})
	if err != nil {
		return err
	}
	if f.asked.Samples > 0 {
		f.samples = f.asked.Samples
	}
	f.samples = min(f.samples, f.model.Samples())
	return nil
}

// levelCache is how many bytes of decoded levels may stay in memory: an eighth of
// what may lie there beside what is fixed.
func (f *finder) levelCache() int64 {
	return activationLimit(f.run.options.Memory-f.run.plan.Memory.Fixed) / 8
}

func sequences(s *dataset.Sequences) [][]uint32 {
	all := make([][]uint32, s.N)
	for i := range all {
		all[i] = s.Tokens(i)
	}
	return all
}

// budgets returns the bytes of each size that is asked for.
func (r *run) budgets(genes []gene) ([]int64, error) {
	var all []int64
	for _, text := range r.recipe.Search.Fit {
		z, err := parseSize(text)
		if err != nil {
			return nil, err // checked before
		}
		b, err := r.budget(genes, z)
		if err != nil {
			return nil, err
		}
		all = append(all, b)
	}
	return all, nil
}

// FitError says that a size cannot be met, or needs no search.
type FitError struct {
	Fit string
	Err error // *search.BudgetError where levels are too large or too small
	// Original is the source's size where the size is above that, else 0.
	Original int64
}

func (e *FitError) Error() string {
	var b *search.BudgetError
	switch {
	case e.Original > 0:
		return fmt.Sprintf("search.fit: %s is more than the model takes as it is, %d bytes; there is nothing to do", e.Fit, e.Original)
	case errors.As(e.Err, &b) && errors.Is(b, search.ErrBudgetTooSmall):
		return fmt.Sprintf("search.fit: %s is %d bytes, and the smallest that the levels allow is %d; give a larger size, or cheaper levels", e.Fit, b.Bytes, b.Smallest)
	case errors.As(e.Err, &b):
		return fmt.Sprintf("search.fit: %s is %d bytes, and all layers at their dearest levels take %d; there is nothing to choose: give a smaller size, or dearer levels such as {keep: true}", e.Fit, b.Bytes, b.Largest)
	}
	return fmt.Sprintf("search.fit: %s: %v", e.Fit, e.Err)
}

func (e *FitError) Unwrap() error { return e.Err }

// errNoCandidate says that a search has met none that works.
var errNoCandidate = errors.New("no candidate within it gives a model that runs; allow other levels, or a larger size")

// checkBudgets refuses sizes that cannot be met.
func (f *finder) checkBudgets() error {
	budgets, err := f.run.budgets(f.genes)
	if err != nil {
		return err
	}
	for i, b := range budgets {
		if _, err := f.spaceFor(i, b, false); err != nil {
			return err
		}
	}
	return nil
}

// spaceFor returns the space of size i, see spaceOf.
func (f *finder) spaceFor(i int, budget int64, exact bool) (*search.Space, error) {
	fit := f.asked.Fit[i]
	if from := f.run.original.ckpt.Size(); budget > from {
		return nil, &FitError{Fit: fit, Original: from}
	}
	s, err := f.run.spaceOf(f.genes, budget, exact)
	var b *search.BudgetError
	if errors.As(err, &b) {
		return nil, &FitError{Fit: fit, Err: err}
	}
	return s, err
}

// checkStages refuses stages that want more samples than there are.
func (f *finder) checkStages() error {
	o := f.options()
	for i, s := range o.Stages {
		if s.Samples > f.model.Samples() {
			return &RecipeError{File: f.run.recipe.file, Where: fmt.Sprintf("search.stages[%d]", i), Reason: fmt.Sprintf(
				"wants %d %s, and the data have %d; give more of them, or fewer in the stages", s.Samples, f.unit, f.model.Samples())}
		}
	}
	return nil
}

func (f *finder) options() search.Options {
	return f.asked.options(f.model.Samples(), len(f.genes))
}

// find searches for each size.
func (f *finder) find(ctx context.Context) (*Found, error) {
	r := f.run
	r.clock.enter(StageSearch)
	budgets, err := r.budgets(f.genes)
	if err != nil {
		return nil, err
	}
	rec := &record.Search{
		Method: f.asked.Method, Fitness: f.asked.Fitness, TopK: f.asked.TopK, Unit: f.unit, Samples: f.model.Samples(), Seed: f.asked.Seed,
	}
	if d := f.asked.Data; d != nil {
		rec.Data = copied(&dataRecord("search", d, f.data)[0])
	}
	if rec.Genes, rec.Smallest, rec.Largest, err = r.describe(f.genes, f.levels); err != nil {
		return nil, err
	}
	found := &Found{Record: rec}
	for i, budget := range budgets {
		z, err := parseSize(f.asked.Fit[i])
		if err != nil {
			return nil, err // checked before
		}
		// Average bits count no headers, so what these have too much is not for weights.
		recipe, result, err := f.fit(ctx, i, budget, z.bits == 0)
		if err == nil && result.Bytes > budget {
			recipe, result, err = f.fit(ctx, i, budget, false)
		}
		if err != nil {
			return nil, err
		}
		if result.Bytes > budget {
			return nil, fmt.Errorf("what was found for %s takes %d bytes, %d are allowed; please report this", f.asked.Fit[i], result.Bytes, budget)
		}
		found.Recipes = append(found.Recipes, recipe)
		rec.Results = append(rec.Results, *result)
	}
	rec.Seconds = time.Since(f.began).Seconds()
	return found, nil
}

// fit finds the levels for size i, and the recipe with them.
func (f *finder) fit(ctx context.Context, i int, budget int64, exact bool) (*Recipe, *record.SearchResult, error) {
	space, err := f.spaceFor(i, budget, exact)
	if err != nil {
		return nil, nil, err
	}
	result, err := f.search(ctx, f.asked.Fit[i], space)
	if err != nil {
		return nil, nil, err
	}
	recipe, err := f.run.found(f.genes, result.Levels)
	if err != nil {
		return nil, nil, err
	}
	o := f.run.options
	plan, err := MakePlan(ctx, recipe, Options{Workers: o.Workers, Memory: o.Memory, Cache: o.Cache})
	if err != nil {
		return nil, nil, fmt.Errorf("the recipe that was found for %s: %w", f.asked.Fit[i], err)
	}
	result.Bytes = plan.WeightBytes
	return recipe, result, nil
}

// search finds the levels for one size.
func (f *finder) search(ctx context.Context, fit string, space *search.Space) (*record.SearchResult, error) {
	base, err := f.baselines(ctx, space)
	if err != nil {
		return nil, err
	}
	candidates := make([]search.Candidate, len(base))
	for i, b := range base {
		candidates[i] = b.Levels
	}
	values, err := f.measured(ctx, "baselines", candidates)
	if err != nil {
		return nil, err
	}
	best := 0
	for i, v := range values {
		if base[i].Fitness = v; math.IsInf(v, 0) {
			base[i].Fitness = -1 // JSON has no infinity
		}
		if v < values[best] {
			best = i
		}
	}
	result := &record.SearchResult{Asked: fit, Budget: space.Budget().Bytes, Samples: f.samples, Baselines: base}
	if at := baseline(base, f.asked.Method); at >= 0 {
		if result.Levels, result.Fitness = base[at].Levels, base[at].Fitness; result.Fitness < 0 {
			return nil, &FitError{Fit: fit, Err: errNoCandidate}
		}
		return result, nil
	}
	start := best
	if at := baseline(base, f.asked.Start); at >= 0 {
		start = at
	}
	evolved, err := f.evolve(ctx, fit, space, base[start].Levels, result)
	if err != nil {
		return nil, err
	}
	if values, err = f.measured(ctx, "result", []search.Candidate{evolved}); err != nil {
		return nil, err
	}
	result.Levels, result.Fitness = evolved, values[0]
	if result.Fitness > base[best].Fitness && base[best].Fitness >= 0 { // on more samples than a generation's
		result.Levels, result.Fitness = base[best].Levels, base[best].Fitness
	}
	if math.IsInf(result.Fitness, 0) {
		return nil, &FitError{Fit: fit, Err: errNoCandidate}
	}
	return result, f.choose(ctx, result)
}

// choose compresses the best few in the order of the data, where that is how the model
// will be made, and makes the one that is nearest to the original then the result.
// Layers that make up for those before them shift what a level costs.
func (f *finder) choose(ctx context.Context, result *record.SearchResult) error {
	n := f.asked.Finalists
	if n == 0 {
		n = finalists
	}
	if f.run.recipe.Sequential == "none" || n == 1 {
		return nil
	}
	type finalist struct {
		levels  []int
		fitness float64
		inOrder **float64
	}
	all := []finalist{{result.Levels, result.Fitness, &result.InOrder}}
	for i := range result.Baselines {
		b := &result.Baselines[i]
		if b.Fitness >= 0 && !slices.Equal(b.Levels, result.Levels) {
			all = append(all, finalist{b.Levels, b.Fitness, &b.InOrder})
		}
	}
	slices.SortStableFunc(all, func(a, b finalist) int { return cmp.Compare(a.fitness, b.fitness) })
	all = slices.CompactFunc(all, func(a, b finalist) bool { return slices.Equal(a.levels, b.levels) })
	all = all[:min(n, len(all))]
	if len(all) == 1 {
		return nil
	}
	var best finalist
	for i, one := range all {
		v, err := f.inOrder(ctx, one.levels)
		if err != nil {
			return err
		}
		*one.inOrder = &v
		if best.inOrder == nil || v < **best.inOrder {
			best = one
		}
		f.run.clock.emit(Event{Done: i + 1, Total: len(all)})
	}
	inOrder := **best.inOrder
	result.Levels, result.Fitness, result.InOrder = best.levels, best.fitness, &inOrder
	return nil
}

// finalists is Search.Finalists where a recipe does not say.
const finalists = 3

// inOrder compresses the model at some levels in the order of the data, and returns
// how far it is from the original on the search's data.
func (f *finder) inOrder(ctx context.Context, levels []int) (float64, error) {
	r := f.run
	recipe, err := r.found(f.genes, levels)
	if err != nil {
		return 0, err
	}
	k, err := f.key("in order", recipe.text)
	if err != nil {
		return 0, err
	}
	v, _, err := unit(r.kept, k, layer.DecodeVectors, layer.EncodeVectors, func() (*layer.Vectors, error) {
		dir, err := os.MkdirTemp("", "fettle-search-")
		if err != nil {
			return nil, &OutputError{Path: os.TempDir(), Err: err}
		}
		defer os.RemoveAll(dir)
		recipe.Output = Output{Path: filepath.Join(dir, "out"), Format: r.recipe.Output.Format}
		if recipe.Evaluate = recipe.Calibration; f.asked.Data != nil {
			recipe.Evaluate = f.asked.Data
		}
		o := Options{Workers: r.options.Workers, Memory: r.options.Memory, Cache: r.kept.dir}
		run, err := runRecipe(ctx, recipe, o, nil)
		if err != nil {
			return nil, err
		}
		value := run.Evaluation.KL
		if o := run.Evaluation.Outputs; o != nil {
			value = *o.KL // fitness measures no others
		} else if l := run.Evaluation.Language; l != nil {
			if value = l.KL; f.asked.Fitness == "loss" {
				value = l.Compressed.Loss
			}
		} else if f.asked.Fitness == "loss" {
			value = run.Evaluation.Compressed.Loss
		}
		return &layer.Vectors{Of: [][]float64{{value}}}, nil
	})
	if err != nil {
		return 0, err
	}
	return v.Of[0][0], nil
}

// baseline returns which one has a name; −1 for none.
func baseline(base []record.SearchBaseline, name string) int {
	return slices.IndexFunc(base, func(b record.SearchBaseline) bool { return b.Name == name })
}

// dpBuckets is how finely sums of errors count bytes.
const dpBuckets = 20000

// baselines returns the ways to choose levels that need few evaluations or none.
func (f *finder) baselines(ctx context.Context, space *search.Space) ([]record.SearchBaseline, error) {
	errs, err := f.levelErrors(ctx)
	if err != nil {
		return nil, err
	}
	dp, err := space.SumOfErrors(ctx, errs, dpBuckets)
	if err != nil {
		return nil, err
	}
	greedy, err := space.Greedy(ctx, errs)
	if err != nil {
		return nil, err
	}
	var all []record.SearchBaseline
	for _, b := range []struct {
		name   string
		levels search.Candidate
	}{{"uniform", space.Uniform()}, {"dp", dp}, {"greedy", greedy}, {"random", space.Random(f.asked.Seed)}} {
		all = append(all, record.SearchBaseline{Name: b.name, Levels: b.levels, Bytes: space.Cost(b.levels)})
	}
	return all, nil
}

// levelErrors returns what each level costs by itself: the fitness of the original with
// that level alone, or the sum of its layers' relative errors.
func (f *finder) levelErrors(ctx context.Context) ([][]float64, error) {
	errs := make([][]float64, len(f.genes))
	for i := range f.genes {
		errs[i] = make([]float64, len(f.genes[i].levels))
		for k := range errs[i] {
			errs[i][k] = math.Inf(1)
		}
	}
	if f.asked.Errors == "layer" {
		for i := range f.genes {
			for k := range f.genes[i].levels {
				if e, ok := f.layerError(&f.genes[i], k); ok {
					errs[i][k] = e
				}
			}
		}
		return errs, nil
	}
	var alone []search.Candidate
	var at [][2]int
	for i := range f.genes {
		for k, reason := range f.genes[i].usable {
			if reason != "" {
				continue
			}
			c := make(search.Candidate, len(f.genes))
			for j := range c {
				c[j] = fitness.Original
			}
			c[i] = k
			alone, at = append(alone, c), append(at, [2]int{i, k})
		}
	}
	values, err := f.measured(ctx, "errors", alone)
	if err != nil {
		return nil, err
	}
	for n, v := range values {
		errs[at[n][0]][at[n][1]] = v
	}
	return errs, nil
}

// layerError returns the sum of the relative errors of a gene's layers at a level.
func (f *finder) layerError(g *gene, level int) (sum float64, ok bool) {
	if g.usable[level] != "" {
		return 0, false
	}
	if g.levels[level].drop != "" {
		return float64(len(g.layers[level])), true
	}
	for _, l := range g.layers[level] {
		if f.run.plan.Layers[l].solvable() {
			sum += max(f.levels.errors[l], 0)
		}
	}
	return sum, true
}

// together is how many candidates are measured between two words of progress.
const together = 64

// measured returns the fitness of candidates on all of f.samples, which are kept on
// disk.
func (f *finder) measured(ctx context.Context, kind string, all []search.Candidate) ([]float64, error) {
	k, err := f.key(kind, f.samples, all)
	if err != nil {
		return nil, err
	}
	v, _, err := unit(f.run.kept, k, layer.DecodeVectors, layer.EncodeVectors, func() (*layer.Vectors, error) {
		var values []float64
		for part := range slices.Chunk(all, together) {
			some, err := f.evaluate(ctx, part, search.Batch{Samples: f.samples, Survivors: len(part)})
			if err != nil {
				return nil, err
			}
			values = append(values, some...)
			f.run.clock.emit(Event{Done: len(values), Total: len(all)})
		}
		return &layer.Vectors{Of: [][]float64{values}}, nil
	})
	if err != nil {
		return nil, err
	}
	if len(v.Of) != 1 || len(v.Of[0]) != len(all) {
		return nil, &CacheError{Dir: f.run.kept.dir, Err: errLostUnit}
	}
	return v.Of[0], nil
}

// evaluate measures candidates. What is left of some can be no model, such as a stage
// of a ResNet that has lost all of its blocks: such a one fails.
func (f *finder) evaluate(ctx context.Context, candidates []search.Candidate, batch search.Batch) ([]float64, error) {
	values := make([]float64, len(candidates))
	var able []search.Candidate
	var at []int
	for i, c := range candidates {
		if f.able(c) {
			able, at = append(able, c), append(at, i)
		} else {
			values[i] = math.Inf(1)
		}
	}
	if len(able) == 0 {
		return values, nil
	}
	batch.Survivors = min(batch.Survivors, len(able))
	some, err := f.model.Evaluate(ctx, able, batch)
	if err != nil {
		return nil, err
	}
	for i, v := range some {
		values[at[i]] = v
	}
	return values, nil
}

// able reports whether what a candidate leaves of the model can be built.
func (f *finder) able(c search.Candidate) bool {
	var gone []model.Removal
	id := ""
	for i, k := range c {
		if k >= 0 && f.genes[i].levels[k].drop != "" {
			s := f.genes[i].site
			gone = append(gone, model.Removal{Kind: s.Kind, Site: s.Name})
			id += fmt.Sprint(i, " ")
		}
	}
	if len(gone) == 0 {
		return true
	}
	ok, known := f.runs[id]
	if !known {
		_, err := model.Remove(f.run.graph, f.run.ckpt.Tensors(), f.run.recipe.modelOptions(f.run.config), gone)
		ok = err == nil
		f.runs[id] = ok
	}
	return ok
}

// key is of all that a measurement of candidates depends on, and more.
func (f *finder) key(parts ...any) (string, error) {
	all := []any{
		"search", searchVersion, layer.EncodingVersion, blas.Path, f.run.sha, f.run.graph.Hash(), f.data.sha256(),
		f.asked.Fitness, f.asked.TopK, f.levels.keys,
	}
	for _, g := range f.genes {
		all = append(all, g.name, g.layers)
		for _, l := range g.levels {
			all = append(all, l.name, l.drop)
		}
	}
	return key(append(all, parts...)...)
}

// describe returns the genes as the record has them, with what is known of their
// errors, and the sizes of the whole.
func (r *run) describe(genes []gene, d *database) (all []record.SearchGene, smallest, largest int64, err error) {
	s, err := r.sizesOf(genes, r.original.ckpt.Size())
	if err != nil {
		return nil, 0, 0, err
	}
	smallest, largest = s.rest, s.rest
	for i, g := range genes {
		out := record.SearchGene{Name: g.name}
		for _, l := range g.layers[0] {
			out.Layers = append(out.Layers, r.plan.Layers[l].Name)
		}
		least, most := int64(-1), int64(0)
		for k, l := range g.levels {
			level := record.SearchLevel{Name: l.name, Bytes: max(s.levels[i][k], 0), LeftOut: g.usable[k]}
			if g.usable[k] == "" {
				if least < 0 || level.Bytes < least {
					least = level.Bytes
				}
				most = max(most, level.Bytes)
				if d != nil {
					level.RelativeError = d.meanError(r, &g, k)
				}
			}
			out.Levels = append(out.Levels, level)
		}
		smallest, largest = smallest+max(least, 0), largest+most
		all = append(all, out)
	}
	return all, smallest, largest, nil
}

// meanError is the mean relative error of a gene's layers at a level; nil where it is
// not known.
func (d *database) meanError(r *run, g *gene, level int) *float64 {
	sum, n := 0.0, 0
	for _, l := range g.layers[level] {
		if r.plan.Layers[l].solvable() && d.errors[l] >= 0 {
			sum += d.errors[l]
			n++
		}
	}
	if n == 0 {
		return nil
	}
	sum /= float64(n)
	return &sum
}
