// Package evaluate measures classifiers and language models by their logits:
// accuracy, loss, perplexity, and how far a compressed model's answers are from
// the original's. Models with other outputs, such as encoders, are compared by
// these alone.
package evaluate

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"gonum.org/v1/gonum/blas/blas32"

	"github.com/fettle-dev/fettle/record"
)

// Error says why logits cannot be measured. Sample is −1 when the fault is not
// one sample's.
type Error struct {
	Model   string // original or compressed; "" when one model alone was given
	Sample  int
	Problem string
}

func (e *Error) Error() string {
	text := "evaluate: "
	if e.Model != "" {
		text += "the " + e.Model + " model: "
	}
	if e.Sample >= 0 {
		text += fmt.Sprintf("sample %d: ", e.Sample)
	}
	return text + e.Problem
}

// Metrics returns top-1 accuracy and mean cross-entropy of samples × classes
// logits. Among equal logits the lowest class is the prediction. It fails with
// *Error on a NaN or infinite logit, on a label that is no class, and where
// there is nothing to measure.
func Metrics(logits blas32.General, labels []int) (record.Metrics, error) {
	m, err := measure("", logits, labels)
	return m.Metrics, err
}

// Classification compares two models on the same samples: each one's metrics,
// the mean KL(original ‖ compressed), changed predictions, and the drop of
// accuracy with its 95 % paired-bootstrap interval. Sums are float64 in the
// order of the samples. Errors are as for Metrics.
func Classification(original, compressed blas32.General, labels []int) (*record.Evaluation, error) {
	if original.Cols != compressed.Cols {
		return nil, &Error{Sample: -1, Problem: fmt.Sprintf("the original has %d classes, the compressed model %d", original.Cols, compressed.Cols)}
	}
	a, err := measure("original", original, labels)
	if err != nil {
		return nil, err
	}
	b, err := measure("compressed", compressed, labels)
	if err != nil {
		return nil, err
	}
	e := &record.Evaluation{Samples: len(labels), Original: a.Metrics, Compressed: b.Metrics}
	worse, better := 0, 0
	for i, label := range labels {
		e.KL += divergence(row(original, i), row(compressed, i))
		if a.predictions[i] != b.predictions[i] {
			e.Changed++
		}
		switch was, is := a.predictions[i] == label, b.predictions[i] == label; {
		case was && !is:
			worse++
		case is && !was:
			better++
		}
	}
	n := len(labels)
	e.KL /= float64(n)
	e.AccuracyDrop = points(worse-better, n)
	e.Interval = bootstrap(n, worse, better)
	e.Tied = e.Interval[0] <= 0 && e.Interval[1] >= 0
	return e, nil
}

type measured struct {
	record.Metrics
	predictions []int
}

func measure(model string, logits blas32.General, labels []int) (measured, error) {
	fail := func(sample int, format string, args ...any) (measured, error) {
		return measured{}, &Error{Model: model, Sample: sample, Problem: fmt.Sprintf(format, args...)}
	}
	n, classes := logits.Rows, logits.Cols
	if n != len(labels) {
		return fail(-1, "%d samples for %d labels", n, len(labels))
	}
	if n < 1 || classes < 1 {
		return fail(-1, "no logits: %d samples of %d classes", n, classes)
	}
	if logits.Stride < classes || len(logits.Data) < (n-1)*logits.Stride+classes {
		return fail(-1, "%d numbers with stride %d do not hold %d×%d logits", len(logits.Data), logits.Stride, n, classes)
	}
	m := measured{predictions: make([]int, n)}
	for i, label := range labels {
		z := row(logits, i)
		for c, v := range z {
			if f := float64(v); math.IsNaN(f) || math.IsInf(f, 0) {
				return fail(i, "the logit of class %d is %v: check the model's weights and the normalization of its input", c, v)
			}
			if v > z[m.predictions[i]] {
				m.predictions[i] = c
			}
		}
		if label < 0 || label >= classes {
			return fail(i, "label %d is none of the model's %d classes: check that the data set is the model's", label, classes)
		}
		if m.predictions[i] == label {
			m.Correct++
		}
		m.Loss += logSumExp(z) - float64(z[label])
	}
	m.Loss /= float64(n)
	m.Top1 = points(m.Correct, n)
	return m, nil
}

func row(m blas32.General, i int) []float32 { return m.Data[i*m.Stride:][:m.Cols] }

// points returns count of n in percent.
func points(count, n int) float64 { return 100 * float64(count) / float64(n) }

// logSumExp returns log Σ exp(z), shifted by the maximum so that it neither
// overflows nor underflows.
func logSumExp(z []float32) float64 {
	top := float64(slices.Max(z))
	var sum float64
	for _, v := range z {
		sum += math.Exp(float64(v) - top)
	}
	return top + math.Log(sum)
}

// divergence returns KL(softmax(p) ‖ softmax(q)) in nats. Rounding can make
// the sum of nearly equal ones negative, which no KL is.
func divergence(p, q []float32) float64 {
	lp, lq := logSumExp(p), logSumExp(q)
	var kl float64
	for c := range p {
		a, b := float64(p[c])-lp, float64(q[c])-lq
		kl += math.Exp(a) * (a - b)
	}
	return max(kl, 0)
}

const (
	resamples     = 10_000
	bootstrapSeed = 95
)

// bootstrap returns the 95 % percentile interval of the drop of accuracy in
// points, from resamples of the n samples with their differences of being
// right: +1 for worse of them, −1 for better, else 0.
//
// A resample's sum depends on its counts alone, which are multinomial. They
// are drawn as such: first how many of the n fall on a sample that differs
// (binomial), then which of those are worse, one by one.
func bootstrap(n, worse, better int) [2]float64 {
	differ := worse + better
	if differ == 0 {
		return [2]float64{}
	}
	r := rand.New(rand.NewPCG(bootstrapSeed, 0))
	cdf := binomial(n, float64(differ)/float64(n))
	drops := make([]int, resamples)
	for i := range drops {
		k, _ := slices.BinarySearch(cdf, r.Float64()*cdf[n])
		for range min(k, n) {
			if r.IntN(differ) < worse {
				drops[i]++
			} else {
				drops[i]--
			}
		}
	}
	slices.Sort(drops)
	const tail = resamples / 40 // 2.5 % on each side
	return [2]float64{points(drops[tail], n), points(drops[resamples-1-tail], n)}
}

// binomial returns the cumulative distribution of 0…n successes, up to a
// common factor close to 1.
func binomial(n int, p float64) []float64 {
	cdf := make([]float64, n+1)
	if p == 1 {
		cdf[n] = 1
		return cdf
	}
	all, _ := math.Lgamma(float64(n) + 1)
	var sum float64
	for k := range cdf {
		a, _ := math.Lgamma(float64(k) + 1)
		b, _ := math.Lgamma(float64(n-k) + 1)
		sum += math.Exp(all - a - b + float64(k)*math.Log(p) + float64(n-k)*math.Log1p(-p))
		cdf[k] = sum
	}
	return cdf
}
