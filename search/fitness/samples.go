package fitness

import (
	"math/rand/v2"
	"slices"

	"github.com/fettle-dev/fettle/dataset"
	"github.com/fettle-dev/fettle/model"
)

// samples are all there are. An item is an image or a document.
type samples struct {
	images    *dataset.Images
	labels    []int
	sequences [][]uint32
	total     int // images, or tokens to predict
	outputs   int // logits
	ahead     int // of a sequence, last rows that count nowhere: 1 where rows predict the next token
}

// item is an image, or a document's first rows tokens, all but the last of which
// predict the next, or all of which have an output of their own.
type item struct {
	index, rows int
	whole       bool
}

func (s *samples) language() bool { return s.images == nil }

// counted returns how many samples an item is.
func (s *samples) counted(i item) int {
	if s.language() {
		return i.rows - s.ahead
	}
	return 1
}

func newSamples(g *model.Graph, d Data, m Measure) (samples, error) {
	s := samples{images: d.Images}
	language := g.Ops[0].Kind == model.Embed
	switch {
	case (d.Images == nil) == (d.Sequences == nil):
		return s, problem("give either images or sequences")
	case language != s.language() && language:
		return s, problem("images for a model of text")
	case language != s.language():
		return s, problem("sequences of tokens for a model of images")
	}
	if g.Task != "" && g.Task != model.TokenClasses {
		return s, problem("the model gives %s for a sequence or an image, and a search measures logits of tokens or images: give its rules without a search", g.Task)
	}
	if g.Task != "" && m == Loss {
		return s, problem("the model predicts no next token, so there is no loss: measure kl or topk-kl")
	}
	if g.Task == "" {
		s.ahead = 1
	}
	shape := g.Values[g.Output].Shape
	s.outputs = shape[len(shape)-1]
	if len(shape) != 1 {
		return s, problem("the model's output is %v: it is no row of logits", shape)
	}
	if !language {
		return s, s.checkImages(g, m)
	}
	if head := &g.Ops[len(g.Ops)-1]; head.Kind != model.Linear || head.Output != g.Output {
		return s, problem("%s, the last operation, is no linear head", head.Name)
	}
	for i, ids := range d.Sequences {
		for at, id := range ids {
			if g.Task == "" && int64(id) >= int64(s.outputs) {
				return s, problem("token %d of sequence %d has id %d, but the model predicts %d: the ids are of another tokenizer", at, i, id, s.outputs)
			}
		}
		if len(ids) > s.ahead {
			s.sequences = append(s.sequences, ids)
			s.total += len(ids) - s.ahead
		}
	}
	if s.total == 0 {
		return s, problem("no token to predict: give sequences of at least two")
	}
	return s, nil
}

func (s *samples) checkImages(g *model.Graph, m Measure) error {
	want, n := g.Values[g.Input].Shape, 1
	for _, d := range s.images.Shape {
		n *= d
	}
	flat := len(want) == 1 && want[0] == n
	if !flat && !slices.Equal(want, s.images.Shape) {
		return problem("images of %v for a model that takes %v", s.images.Shape, want)
	}
	s.total = s.images.N
	if s.total < 1 {
		return problem("no images")
	}
	if m != Loss {
		return nil
	}
	if s.labels = s.images.Labels(); len(s.labels) != s.total {
		return problem("%d labels for %d images: the loss needs one each, kl needs none", len(s.labels), s.total)
	}
	for i, label := range s.labels {
		if label < 0 || label >= s.outputs {
			return problem("image %d has label %d, which is none of the model's %d classes", i, label, s.outputs)
		}
	}
	return nil
}

// draw returns n samples of a seed: items in the order drawn, none twice, the last
// document cut so that exactly n tokens are predicted. All samples come in their
// own order.
func (s *samples) draw(n int, seed uint64) ([]item, error) {
	if n < 1 || n > s.total {
		return nil, &SamplesError{n, s.total}
	}
	count := s.total
	if s.language() {
		count = len(s.sequences)
	}
	order := make([]int, count)
	for i := range order {
		order[i] = i
	}
	r := rand.New(rand.NewPCG(seed, 0x6669_746e_6573_73)) // the second word separates these draws from other users of the seed
	var items []item
	for i, left := 0, n; left > 0; i++ {
		if n < s.total {
			j := i + r.IntN(count-i)
			order[i], order[j] = order[j], order[i]
		}
		one := item{index: order[i], rows: 1, whole: true}
		if s.language() {
			length := len(s.sequences[one.index])
			one.rows = min(length, left+s.ahead)
			one.whole = one.rows == length
		}
		left -= s.counted(one)
		items = append(items, one)
	}
	return items, nil
}

// target returns the label, or the token that follows a row.
func (s *samples) target(i item, row int) int {
	if s.language() && s.ahead == 0 {
		return -1
	}
	if s.language() {
		return int(s.sequences[i.index][row+1])
	}
	if s.labels == nil {
		return -1
	}
	return s.labels[i.index]
}
