package dataset

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"slices"
	"sort"
	"strings"
)

// The formats of data for language models; Safetensors is one of them too.
const (
	Text     = "text"    // UTF-8 text, divided into documents by a separator
	JSONL    = "jsonl"   // a JSON object a line, one field of which is a document
	U16      = "u16"     // token ids, little-endian, without a header
	U32      = "u32"     // the same of four bytes
	NPY      = "npy"     // token ids in NumPy's format, one or two axes
	Embedded = "builtin" // BuiltIn's documents
)

// The modes.
const (
	Documents = "documents"
	Packed    = "packed"
)

// Encode turns a text into token ids.
type Encode = func(text string) ([]uint32, error)

// TextOptions say what to open for a language model, and which sequences to
// draw from it. An option that its format or mode has no use for is an error.
type TextOptions struct {
	// Path is a file, or a folder: then all of its files whose name ends as the
	// format's do (.txt, .jsonl, .u16, .u32, .npy, .safetensors), in the order
	// of their names. "" for "builtin".
	Path, Format string

	// Field is the field of a "jsonl" line that holds the text; "" is "text".
	Field string

	// Separator divides a "text" file into documents, as "<|endoftext|>" does;
	// with "" a file is one document.
	Separator string

	// Lengths is a JSON list of the lengths of the documents that stand one
	// after the other in a file of ids. "" takes x.lengths.json beside x.u16
	// where there is one; else a file is one document. In an array of two axes
	// each row is a document.
	Lengths string

	// MinChars leaves out documents of fewer characters (code points), white
	// space at both ends not counted. Documents of white space alone are always
	// left out.
	MinChars int

	// Strip removes white space from both ends of a document.
	Strip bool

	// Subset, Samples and Seed draw documents (mode "documents") or sequences
	// (mode "packed"), as Options do. Documents are counted after MinChars.
	Subset  [2]int
	Samples int
	Seed    *int64

	// Mode is "documents", or "": one sequence for each document, cut to
	// Length. Or "packed": the documents drawn together in their order and cut
	// into sequences of exactly Length, what is left over dropped.
	Mode string

	// Length is the most ids of a sequence; 0, in mode "documents", is no limit.
	Length int

	// SkipLong, in mode "documents", leaves out documents of more than Length
	// ids instead of cutting them; the draw goes on with the next.
	SkipLong bool

	// BOS and EOS are put before and after each document; nil for none. They
	// count in Length.
	BOS, EOS *uint32

	// Vocabulary, where it is not 0, makes ids that are not below it an error.
	Vocabulary int

	// Decode returns the text of ids, special tokens left out. It may be nil.
	// Only Bytes needs it, and only for sequences that are not a whole text
	// behind a BOS.
	Decode func(ids []uint32) (string, error)
}

// Sequences are token ids that were drawn. They are held in memory with 4
// bytes an id.
type Sequences struct {
	N int // sequences drawn

	// Of is how many documents (mode "documents") or sequences (mode "packed")
	// the data hold; 0 where sequences need not all be cut to draw these.
	Of int

	// Skipped counts the documents that were met in drawing and left out: those
	// of fewer than 2 ids, which predict nothing, and with SkipLong the long.
	Skipped int

	Path, Format string

	ids    []uint32
	starts []int // N + 1 places in ids
	bytes  int64
}

// OpenText opens text or token ids and reads the sequences that the options
// draw. encode is not called for ids and may then be nil. Files are read
// document by document: beside the sequences drawn, memory holds one document
// and 24 bytes for each document of the data. Mode "packed" with a seed
// encodes the data up to the end of the subset once, and the documents drawn
// from once more.
//
// All errors are *Error, but for the context's.
func OpenText(ctx context.Context, o TextOptions, encode Encode) (*Sequences, error) {
	if err := o.check(encode); err != nil {
		return nil, err
	}
	c, err := openCorpus(ctx, o, encode)
	if err != nil {
		return nil, err
	}
	defer c.close()
	s := &Sequences{Path: o.Path, Format: o.Format, starts: []int{0}}
	switch {
	case o.Mode != Packed:
		err = s.drawDocuments(ctx, c)
	case o.Seed == nil:
		err = s.packInOrder(ctx, c)
	default:
		err = s.packDrawn(ctx, c)
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// textFormats and idFormats give the ending of a format's files.
var (
	textFormats = map[string]string{Text: ".txt", JSONL: ".jsonl", Embedded: ""}
	idFormats   = map[string]string{U16: ".u16", U32: ".u32", NPY: ".npy", Safetensors: ".safetensors"}
)

// check refuses what cannot be done, and options without an effect.
func (o *TextOptions) check(encode Encode) error {
	_, isText := textFormats[o.Format]
	_, isIDs := idFormats[o.Format]
	if !isText && !isIDs {
		return o.fail(fmt.Sprintf("format %q is unknown", o.Format),
			"set it to one of "+strings.Join([]string{Text, JSONL, U16, U32, NPY, Safetensors, Embedded}, ", "))
	}
	packed := o.Mode == Packed
	for _, rule := range []struct {
		broken        bool
		problem, help string
	}{
		{o.Mode == "padded", `mode "padded" is not needed`, `sequences of different lengths run in one batch, and padding would only add ids that count for nothing: use "documents"`},
		{o.Mode != "" && o.Mode != Documents && !packed, fmt.Sprintf("mode %q is unknown", o.Mode), `set it to "documents" or "packed"`},
		{isText && encode == nil, "text needs a tokenizer", "give one, or ids instead of text"},
		{o.Length < 0 || o.Length == 1 || (packed && o.Length == 0), fmt.Sprintf("length %d", o.Length), "a sequence needs at least 2 ids"},
		{o.SkipLong && (packed || o.Length == 0), "long documents cannot be left out", `set a length, and the mode "documents"`},
		{o.Field != "" && o.Format != JSONL, "a field is for jsonl alone", "leave it out"},
		{o.Separator != "" && o.Format != Text, "a separator is for text alone", "leave it out"},
		{o.Lengths != "" && !isIDs, "lengths are for ids alone", "leave them out"},
		{(o.MinChars != 0 || o.Strip) && !isText, "ids have no characters to count or strip", "leave that out"},
		{o.MinChars < 0 || o.Samples < 0, fmt.Sprintf("%d characters, %d samples", o.MinChars, o.Samples), "neither can be negative"},
		{o.Vocabulary < 0 || int64(o.Vocabulary) > 1<<32, fmt.Sprintf("a vocabulary of %d", o.Vocabulary), "give the number of rows of the model's embedding"},
		{(o.Path == "") != (o.Format == Embedded), fmt.Sprintf("path %q with format %q", o.Path, o.Format), "the built-in text has no path, all others have one"},
	} {
		if rule.broken {
			return o.fail(rule.problem, rule.help)
		}
	}
	for name, id := range map[string]*uint32{"BOS": o.BOS, "EOS": o.EOS} {
		if id != nil && o.Vocabulary > 0 && int64(*id) >= int64(o.Vocabulary) {
			return o.fail(fmt.Sprintf("the %s id %d is not below the vocabulary's %d", name, *id, o.Vocabulary), "take it from the model's config")
		}
	}
	return nil
}

func (o *TextOptions) fail(problem, help string) error {
	path := o.Path
	if path == "" {
		path = o.Format
	}
	return &Error{Path: path, Problem: problem, Help: help}
}

// drawDocuments makes one sequence of each document drawn.
func (s *Sequences) drawDocuments(ctx context.Context, c *corpus) error {
	o := c.options
	s.Of = len(c.documents)
	order, err := choose(s.Of, Options{Path: o.Path, Subset: o.Subset, Seed: o.Seed})
	if err != nil {
		return err
	}
	for _, i := range order {
		d, err := c.encoded(ctx, i)
		if err != nil {
			return err
		}
		if long := o.Length > 0 && len(d.ids) > o.Length; len(d.ids) < 2 || (long && o.SkipLong) {
			s.Skipped++
			continue
		} else if long {
			d.ids, d.whole = d.ids[:o.Length], false
		}
		if err := s.add(c, d); err != nil {
			return err
		}
		if s.N == o.Samples {
			break // 0 samples are all of them
		}
	}
	if s.N == 0 || s.N < o.Samples {
		return o.fail(fmt.Sprintf("%d documents asked for, %d can be drawn of %d, and %d of other lengths were left out", o.Samples, s.N, len(order), s.Skipped),
			"ask for fewer, for longer sequences, or for 0 to take all")
	}
	return nil
}

// packInOrder packs documents and takes sequences as they come.
func (s *Sequences) packInOrder(ctx context.Context, c *corpus) error {
	o := c.options
	from, to := o.Subset[0], o.Subset[1]
	if from < 0 || to < from || (from == to && to != 0) {
		return c.beyond(math.MaxInt)
	}
	if to == 0 {
		to = math.MaxInt
	}
	if o.Samples > 0 {
		if o.Samples > to-from {
			return o.fail(fmt.Sprintf("%d samples asked for, the subset has %d", o.Samples, to-from), "ask for fewer, or for 0 to take all")
		}
		to = from + o.Samples
	}
	var pending []uint32 // what the next sequence begins with
	found := 0
	for i := range c.documents {
		d, err := c.encoded(ctx, i)
		if err != nil {
			return err
		}
		pending = append(pending, d.ids...)
		for len(pending) >= o.Length {
			if found >= from {
				if err := s.add(c, encoded{ids: pending[:o.Length]}); err != nil {
					return err
				}
			}
			pending = pending[o.Length:]
			if found++; found == to {
				return nil
			}
		}
	}
	s.Of = found
	switch {
	case found == 0:
		return c.tooFew(int64(len(pending)))
	case o.Subset != [2]int{} && (o.Subset[1] > found):
		return c.beyond(found)
	case s.N < o.Samples:
		return o.fail(fmt.Sprintf("%d samples asked for, %d are there to draw from", o.Samples, s.N), "ask for fewer samples, for shorter sequences, or for 0 to take all")
	}
	return nil
}

// packDrawn counts the ids of every document first, so that it can draw
// sequences and then encode nothing but the documents that they lie in.
func (s *Sequences) packDrawn(ctx context.Context, c *corpus) error {
	o, length := c.options, int64(c.options.Length)
	ends := make([]int64, 0, len(c.documents)) // where document i ends in all ids
	total := int64(0)
	all := true
	for i := range c.documents {
		if o.Subset[1] > 0 && total >= int64(o.Subset[1])*length {
			all = false
			break
		}
		n, err := c.count(ctx, i)
		if err != nil {
			return err
		}
		total += n
		ends = append(ends, total)
	}
	found := int(total / length)
	if found == 0 {
		return c.tooFew(total)
	}
	if all {
		s.Of = found
	}
	drawn, err := choose(found, Options{Path: o.Path, Subset: o.Subset, Samples: o.Samples, Seed: o.Seed})
	if err != nil {
		return err
	}
	ids, err := c.slices(ctx, ends, drawn)
	if err != nil {
		return err
	}
	for k := range drawn {
		if err := s.add(c, encoded{ids: ids[k*o.Length:][:o.Length]}); err != nil {
			return err
		}
	}
	return nil
}

// slices returns sequences of the documents drawn together, one after the
// other in the order asked for. It encodes each document once, in order.
func (c *corpus) slices(ctx context.Context, ends []int64, which []int) ([]uint32, error) {
	length := int64(c.options.Length)
	dst := make([]uint32, int64(len(which))*length)
	places := make([]int, len(which))
	for i := range places {
		places[i] = i
	}
	slices.SortFunc(places, func(a, b int) int { return which[a] - which[b] })
	last, d := -1, encoded{}
	for _, p := range places {
		out := dst[int64(p)*length:][:length]
		at := int64(which[p]) * length
		for i := sort.Search(len(ends), func(i int) bool { return ends[i] > at }); len(out) > 0; i++ {
			if i != last {
				var err error
				if d, err = c.encoded(ctx, i); err != nil {
					return nil, err
				}
				last = i
			}
			begin := ends[i] - int64(len(d.ids))
			n := 0
			if at >= begin { // false where a tokenizer gives other ids the second time
				n = copy(out, d.ids[at-begin:])
			}
			if n == 0 && i+1 == len(ends) {
				return nil, c.options.fail("the tokenizer gives other ids for the same text", "use one that does not draw at random")
			}
			out, at = out[n:], at+int64(n)
		}
	}
	return dst, nil
}

func (c *corpus) tooFew(ids int64) error {
	return c.options.fail(fmt.Sprintf("%d ids do not fill one sequence of %d", ids, c.options.Length), "give more text, or a smaller length")
}

func (c *corpus) beyond(found int) error {
	o := c.options
	if found == math.MaxInt {
		return o.fail(fmt.Sprintf("subset %d…%d", o.Subset[0], o.Subset[1]), "give a first sample and one past the last")
	}
	return o.fail(fmt.Sprintf("subset %d…%d of %d sequences", o.Subset[0], o.Subset[1], found), fmt.Sprintf("give a first sample and one past the last, within 0 and %d", found))
}

// add appends a sequence, and the bytes of the text that its ids but the first
// stand for.
func (s *Sequences) add(c *corpus, d encoded) error {
	n, err := c.predictedBytes(d)
	if err != nil {
		return err
	}
	s.ids = append(s.ids, d.ids...)
	s.starts = append(s.starts, len(s.ids))
	s.N++
	if n < 0 || s.bytes < 0 {
		s.bytes = -1
	} else {
		s.bytes += n
	}
	return nil
}

// Tokens returns the ids of sequence i in the order drawn, nil where there is
// no such sequence. The caller must not write to them.
func (s *Sequences) Tokens(i int) []uint32 {
	if i < 0 || i >= s.N {
		return nil
	}
	return s.ids[s.starts[i]:s.starts[i+1]:s.starts[i+1]]
}

// Total returns the number of ids of all sequences. Total − N of them are
// predicted, all but the first of each sequence.
func (s *Sequences) Total() int { return len(s.ids) }

// Bytes returns the UTF-8 bytes of the text behind the ids that are predicted,
// all but the first of each sequence, for bits per byte. 0 says that they are
// not known: the options have no Decode, and some sequence is not a whole text
// behind a BOS.
func (s *Sequences) Bytes() int64 { return max(s.bytes, 0) }

// SHA256 returns the hex SHA-256 of the sequences: their number, then for each
// the number of ids in 8 bytes and the ids in 4, little-endian.
func (s *Sequences) SHA256() string {
	h := sha256.New()
	b := binary.LittleEndian.AppendUint64(nil, uint64(s.N))
	for i := range s.N {
		ids := s.Tokens(i)
		b = binary.LittleEndian.AppendUint64(b, uint64(len(ids)))
		for _, id := range ids {
			b = binary.LittleEndian.AppendUint32(b, id)
		}
		_, _ = h.Write(b) // a hash does not fail
		b = b[:0]
	}
	return hex.EncodeToString(h.Sum(nil))
}
