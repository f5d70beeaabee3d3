// Command search measures searches on real models and prints the tables of
// docs/benchmarks.md: uniform levels, dynamic programming over the levels' own errors,
// and EvoPress with several seeds, at equal bytes. It needs the models and their data,
// which are not part of the project:
//
//	go run ./internal/bench/search -data ../shared/data -model resnet20 -levels bits -at 2.25,2.5,3
package main

import (
	"context"
	"flag"
	"fmt"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/fettle-dev/fettle/internal/bench/subject"
	"github.com/fettle-dev/fettle/pipeline"
	"github.com/fettle-dev/fettle/record"
)

func main() {
	var b bench
	flag.StringVar(&b.data, "data", "../shared/data", "folder of real models and data")
	flag.StringVar(&b.model, "model", "resnet20", "resnet20, resnet56, llm-stories260k or llm-tinystories-656k")
	flag.StringVar(&b.kind, "levels", "bits", "bits, sparsity, drop or mixed")
	at := flag.String("at", "2.25,2.5,3", "budgets, divided by commas: average bits of the codes, sparsities, or blocks less; each counts the bytes of uniform models of such levels")
	flag.IntVar(&b.images, "samples", 1024, "calibration images of a ResNet")
	flag.IntVar(&b.documents, "documents", 128, "calibration documents of a language model")
	flag.IntVar(&b.seeds, "seeds", 3, "searches with seeds 1 to N")
	flag.StringVar(&b.more, "search", "", "more keys of the recipe's search, such as generations: 50")
	flag.StringVar(&b.method, "method", "", "of the levels' steps; default best, or ADMM")
	flag.BoolVar(&b.tune, "tune", false, "evaluate on calibration data that is left out, to choose defaults by")
	flag.BoolVar(&b.again, "again", true, "also compress what was found in the order of the data")
	flag.StringVar(&b.cache, "cache", "", "folder of units; default a temporary one")
	flag.StringVar(&b.methods, "methods", "uniform,dp,evopress", "of the search")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := b.run(ctx, strings.Split(*at, ",")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

type bench struct {
	data, model, kind, more, method string
	methods                         string
	images, documents, seeds        int
	tune, again                     bool
	cache, temp                     string
	on                              subject.Subject
	count                           int
}

func (b *bench) run(ctx context.Context, at []string) (err error) {
	if b.temp, err = os.MkdirTemp("", "fettle-bench-*"); err != nil {
		return err
	}
	defer os.RemoveAll(b.temp)
	if b.cache == "" {
		b.cache = filepath.Join(b.temp, "cache")
	}
	b.on, err = subject.Find(b.data, b.model, subject.Options{Images: b.images, Documents: b.documents, Tune: b.tune})
	if err != nil {
		return err
	}
	fmt.Println("| at | method | bytes | of the budget | fitness | test KL, as measured | nats added or top-1 | test KL, in order | nats added or top-1 | evaluations | s | 95 % of the gain after, s |")
	fmt.Println(strings.Repeat("|---", 12) + "|")
	for _, x := range at {
		budget, err := b.budget(ctx, x)
		if err != nil {
			return err
		}
		for method := range strings.SplitSeq(b.methods, ",") {
			if err := b.row(ctx, x, method, budget); err != nil {
				return fmt.Errorf("%s, %s: %w", x, method, err)
			}
		}
	}
	return nil
}

// levels are what each kind of search chooses among.
func (b *bench) levels() string {
	quantize, prune := "", ""
	if b.method != "" {
		quantize, prune = "method: "+b.method, "method: "+b.method
	}
	switch b.kind {
	case "sparsity":
		return fmt.Sprintf("steps: [{prune: {%s}}], levels: [{sparsity: [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]}]", prune)
	case "drop":
		return "levels: [{keep: true}, {drop: sublayer}]"
	case "mixed":
		return fmt.Sprintf("steps: [{quantize: {%s}}], levels: [{bits: [2, 3, 4, 5]}, {bits: [3, 4, 5], sparsity: [0.3, 0.5]}, {bits: [2, 3], rank: [2, 4]}]", quantize)
	}
	return fmt.Sprintf("steps: [{quantize: {%s}}], levels: [{bits: [2, 3, 4, 5, 6]}]", quantize)
}

// budget returns the bytes of a uniform model at x, between whole bits by proportion,
// and a little for what a bound on headers is above them.
func (b *bench) budget(ctx context.Context, x string) (int64, error) {
	v, err := strconv.ParseFloat(x, 64)
	if err != nil {
		return 0, err
	}
	size := func(steps string) (float64, error) {
		recipe, err := b.recipe("sequential: none\nrules: [{match: \"*\", steps: [" + steps + "]}]\n")
		if err != nil {
			return 0, err
		}
		plan, err := pipeline.MakePlan(ctx, recipe, pipeline.Options{Cache: b.cache})
		if err != nil {
			return 0, err
		}
		return 1.001 * float64(plan.WeightBytes), nil
	}
	if b.kind == "sparsity" {
		n, err := size(fmt.Sprintf("{prune: {method: magnitude, sparsity: %s}}", x))
		return int64(n), err
	}
	if b.kind == "drop" {
		n, err := b.without(ctx, int(v))
		return int64(1.001 * float64(n)), err
	}
	low, err := size(fmt.Sprintf("{quantize: {method: nearest, bits: %d}}", int(math.Floor(v))))
	if err != nil || v == math.Floor(v) {
		return int64(low), err
	}
	high, err := size(fmt.Sprintf("{quantize: {method: nearest, bits: %d}}", int(math.Ceil(v))))
	return int64(low + (high-low)*(v-math.Floor(v))), err
}

// without returns the bytes of the model without its first n blocks.
func (b *bench) without(ctx context.Context, n int) (int64, error) {
	var blocks []string
	for i := range n {
		blocks = append(blocks, strconv.Quote(strconv.Itoa(i)))
	}
	recipe, err := b.recipe("remove: [{blocks: [" + strings.Join(blocks, ", ") + "]}]\n")
	if err != nil {
		return 0, err
	}
	plan, err := pipeline.MakePlan(ctx, recipe, pipeline.Options{Cache: b.cache})
	if err != nil {
		return 0, err
	}
	return plan.WeightBytes, nil
}

func (b *bench) recipe(rules string) (*pipeline.Recipe, error) {
	recipe, err := pipeline.ParseRecipe(fmt.Appendf(nil, "version: 1\ncalibration: {%s}\nevaluate: {%s}\n%s", b.on.Calibration, b.on.Evaluation, rules), "")
	if err == nil {
		recipe.Model.Path = b.on.Model
	}
	return recipe, err
}

// measured is one search's figures.
type measured struct {
	bytes, evaluations               float64
	fitness, seconds                 float64
	kl, score, klInOrder, scoreAgain float64
	settled                          float64 // seconds to 95 % of what the search gained
}

func (b *bench) row(ctx context.Context, x, method string, budget int64) error {
	seeds := 1
	if method == "evopress" || method == "random" {
		seeds = b.seeds
	}
	var all []measured
	for seed := range seeds {
		m, err := b.search(ctx, method, budget, seed+1)
		if err != nil {
			return err
		}
		all = append(all, m)
	}
	mean := func(of func(measured) float64) (m, deviation float64) {
		for _, one := range all {
			m += of(one) / float64(len(all))
		}
		for _, one := range all {
			deviation += (of(one) - m) * (of(one) - m)
		}
		return m, math.Sqrt(deviation / max(1, float64(len(all)-1)))
	}
	text := func(of func(measured) float64) string {
		m, d := mean(of)
		if len(all) == 1 {
			return fmt.Sprintf("%.4f", m)
		}
		return fmt.Sprintf("%.4f ± %.4f", m, d)
	}
	bytes, _ := mean(func(m measured) float64 { return m.bytes })
	evaluations, _ := mean(func(m measured) float64 { return m.evaluations })
	seconds, _ := mean(func(m measured) float64 { return m.seconds })
	settled, _ := mean(func(m measured) float64 { return m.settled })
	fmt.Printf("| %s | %s | %.0f | %.2f %% | %s | %s | %s | %s | %s | %.0f | %.0f | %.1f |\n", x, method, bytes, 100*bytes/float64(budget),
		text(func(m measured) float64 { return m.fitness }),
		text(func(m measured) float64 { return m.kl }), text(func(m measured) float64 { return m.score }),
		text(func(m measured) float64 { return m.klInOrder }), text(func(m measured) float64 { return m.scoreAgain }),
		evaluations, seconds, settled)
	return nil
}

// search runs one search, and measures what it found on the evaluation data: with the
// levels as the search measured them, and compressed in the order of the data, as
// fettle does unless it is told not to.
func (b *bench) search(ctx context.Context, method string, budget int64, seed int) (m measured, err error) {
	began := time.Now()
	result, run, err := b.find(ctx, "none", method, budget, seed)
	if err != nil {
		return m, err
	}
	m.bytes, m.fitness, m.evaluations = float64(result.Bytes), result.Fitness, float64(len(result.Evaluations))
	m.settled = settled(result)
	m.kl, m.score = figures(run)
	if b.again {
		if _, run, err = b.find(ctx, "value", method, budget, seed); err != nil {
			return m, err
		}
		m.klInOrder, m.scoreAgain = figures(run)
	}
	m.seconds = time.Since(began).Seconds()
	return m, nil
}

func (b *bench) find(ctx context.Context, sequential, method string, budget int64, seed int) (*record.SearchResult, *record.Run, error) {
	recipe, err := b.recipe(fmt.Sprintf("sequential: %s\nrules: [{match: \"*\", %s}]\nsearch: {fit: %d, method: %s, seed: %d, %s}\n", sequential, b.levels(), budget, method, seed, b.more))
	if err != nil {
		return nil, nil, err
	}
	o := pipeline.Options{Cache: b.cache}
	found, err := pipeline.Find(ctx, recipe, o)
	if err != nil {
		return nil, nil, err
	}
	b.count++
	found.Recipes[0].Output.Path = filepath.Join(b.temp, fmt.Sprint(b.count))
	run, err := found.Run(ctx, 0, o)
	return &found.Record.Results[0], run, err
}

// settled returns after how many seconds of its generations a search had 95 % of what
// it gained. A step's gain is the logarithm of the new parent's fitness over the old
// one's, both on the last samples of that generation.
func settled(r *record.SearchResult) float64 {
	type key struct {
		generation, stage int
		levels            string
	}
	fitness, last := map[key]float64{}, map[int]int{}
	for _, e := range r.Evaluations {
		fitness[key{e.Generation, e.Stage, e.Levels}] = e.Fitness
		last[e.Generation] = max(last[e.Generation], e.Stage)
	}
	gains, sum := make([]float64, len(r.Generations)), 0.0
	for i := 1; i < len(gains); i++ {
		g := r.Generations[i]
		if !g.Improved {
			continue
		}
		old := fitness[key{g.Generation, last[g.Generation], letters(r.Generations[i-1].Levels)}]
		gains[i] = math.Log(old / fitness[key{g.Generation, last[g.Generation], letters(g.Levels)}])
		sum += gains[i]
	}
	if sum == 0 {
		return 0
	}
	so := 0.0
	for i, gain := range gains {
		if so += gain; so >= .95*sum {
			return r.Generations[i].Seconds - r.Generations[0].Seconds
		}
	}
	return 0
}

// letters are levels as a record's evaluations have them.
func letters(levels []int) string {
	var b strings.Builder
	for _, l := range levels {
		b.WriteByte("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"[l])
	}
	return b.String()
}

func figures(run *record.Run) (kl, score float64) {
	if l := run.Evaluation.Language; l != nil {
		return l.KL, l.LossIncrease
	}
	return run.Evaluation.KL, run.Evaluation.Compressed.Top1
}
