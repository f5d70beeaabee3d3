package dataset

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// letters is a tokenizer: a character is its code point plus 10.
func letters(text string) ([]uint32, error) {
	var ids []uint32
	for _, r := range text {
		ids = append(ids, uint32(r)+10)
	}
	return ids, nil
}

func unletters(ids []uint32) (string, error) {
	var b []rune
	for _, id := range ids {
		if id >= 10 { // others are special
			b = append(b, rune(id-10))
		}
	}
	return string(b), nil
}

func openText(t testing.TB, o TextOptions) *Sequences {
	t.Helper()
	s, err := OpenText(context.Background(), o, letters)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// texts returns the sequences' text, with ids under 10 as digits.
func texts(s *Sequences) []string {
	var all []string
	for i := range s.N {
		var b strings.Builder
		for _, id := range s.Tokens(i) {
			if id < 10 {
				fmt.Fprintf(&b, "%d", id)
			} else {
				b.WriteRune(rune(id - 10))
			}
		}
		all = append(all, b.String())
	}
	return all
}

func wantTexts(t *testing.T, s *Sequences, want ...string) {
	t.Helper()
	if got := texts(s); !slices.Equal(got, want) || s.N != len(want) {
		t.Errorf("%d sequences %q, want %q", s.N, got, want)
	}
}

func id(v uint32) *uint32 { return &v }
func seed(v int64) *int64 { return &v }
func u16(ids ...int) []byte {
	var b []byte
	for _, v := range ids {
		b = binary.LittleEndian.AppendUint16(b, uint16(v))
	}
	return b
}

func TestTextDocuments(t *testing.T) {
	path := write(t, t.TempDir(), "a.txt", []byte(" one \n<|>two<|><|> \n<|>\tdrei Äpfel<|>x\n"))
	for _, c := range []struct {
		name    string
		set     func(*TextOptions)
		want    []string
		of      int
		skipped int
		bytes   int64
	}{
		{"as they are", func(*TextOptions) {}, []string{" one \n", "two", "\tdrei Äpfel", "x\n"}, 4, 0, 0},
		{"strip", func(o *TextOptions) { o.Strip = true }, []string{"one", "two", "drei Äpfel"}, 4, 1, 0},
		{"min chars", func(o *TextOptions) { o.MinChars = 4 }, []string{"\tdrei Äpfel"}, 1, 0, 0},
		{"min chars counts characters", func(o *TextOptions) { o.MinChars = 11 }, nil, 0, 0, 0},
		{"BOS and EOS", func(o *TextOptions) { o.Strip, o.BOS, o.EOS = true, id(1), id(2) }, []string{"1one2", "1two2", "1drei Äpfel2", "1x2"}, 4, 0, 3 + 3 + 11 + 1},
		{"BOS", func(o *TextOptions) { o.Strip, o.BOS = true, id(1) }, []string{"1one", "1two", "1drei Äpfel", "1x"}, 4, 0, 18},
		{"cut", func(o *TextOptions) { o.Strip, o.BOS, o.EOS, o.Length = true, id(1), id(2), 4 }, []string{"1one", "1two", "1dre", "1x2"}, 4, 0, 0},
		{"cut, with a decoder", func(o *TextOptions) {
			o.Strip, o.BOS, o.EOS, o.Length, o.Decode = true, id(1), id(2), 7, unletters
		}, []string{"1one2", "1two2", "1drei Ä", "1x2"}, 4, 0, 3 + 3 + 7 + 1},
		{"no BOS, with a decoder", func(o *TextOptions) { o.Strip, o.Decode = true, unletters }, []string{"one", "two", "drei Äpfel"}, 4, 1, 2 + 2 + 10},
		{"skip long", func(o *TextOptions) { o.Length, o.SkipLong = 3, true }, []string{"two", "x\n"}, 4, 2, 0},
		{"skip long and go on", func(o *TextOptions) { o.Length, o.SkipLong, o.Samples = 3, true, 1 }, []string{"two"}, 4, 1, 0},
		{"subset", func(o *TextOptions) { o.Subset = [2]int{1, 3} }, []string{"two", "\tdrei Äpfel"}, 4, 0, 0},
		{"samples", func(o *TextOptions) { o.Subset, o.Samples = [2]int{1, 4}, 2 }, []string{"two", "\tdrei Äpfel"}, 4, 0, 0},
		{"packed", func(o *TextOptions) { o.Strip, o.Mode, o.Length = true, Packed, 5 }, []string{"onetw", "odrei", " Äpfe"}, 3, 0, 0},
		{"packed, with ids between", func(o *TextOptions) {
			o.Strip, o.Mode, o.Length, o.BOS, o.EOS, o.Decode = true, Packed, 7, id(1), id(2), unletters
		}, []string{"1one21t", "wo21dre", "i Äpfel"}, 3, 0, 4 + 4 + 7},
		{"packed subset", func(o *TextOptions) { o.Strip, o.Mode, o.Length, o.Subset = true, Packed, 5, [2]int{1, 3} }, []string{"odrei", " Äpfe"}, 0, 0, 0},
		{"packed samples", func(o *TextOptions) { o.Strip, o.Mode, o.Length, o.Samples = true, Packed, 5, 2 }, []string{"onetw", "odrei"}, 0, 0, 0},
		{"no separator", func(o *TextOptions) { o.Separator, o.Strip, o.Length = "", true, 8 }, []string{"one \n<|>"}, 1, 0, 0},
	} {
		o := TextOptions{Path: path, Format: Text, Separator: "<|>"}
		c.set(&o)
		t.Run(c.name, func(t *testing.T) {
			s, err := OpenText(context.Background(), o, letters)
			if c.want == nil {
				wantError(t, err, "no documents")
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			wantTexts(t, s, c.want...)
			if s.Of != c.of || s.Skipped != c.skipped || s.Bytes() != c.bytes {
				t.Errorf("of %d, %d skipped, %d bytes; want %d, %d, %d", s.Of, s.Skipped, s.Bytes(), c.of, c.skipped, c.bytes)
			}
			if total := utf8.RuneCountInString(strings.Join(c.want, "")); s.Total() != total {
				t.Errorf("%d ids, want %d", s.Total(), total)
			}
			if s.Tokens(-1) != nil || s.Tokens(s.N) != nil {
				t.Error("there are ids of no sequence")
			}
		})
	}
}

func wantError(t *testing.T, err error, words ...string) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		t.Errorf("error %v, want an *Error", err)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not say %q", err, w)
		}
	}
}

// Seeded draws are of the same sequences as unseeded ones, without repetition,
// and fewer are the first of more.
func TestTextSeeds(t *testing.T) {
	var b bytes.Buffer
	for i := range 100 {
		fmt.Fprintf(&b, "%03d %s|", i, strings.Repeat("x", i%7))
	}
	path := write(t, t.TempDir(), "a.txt", b.Bytes())
	for _, o := range []TextOptions{
		{Mode: Documents},
		{Mode: Documents, Length: 9, SkipLong: true},
		{Mode: Packed, Length: 5},
		{Mode: Packed, Length: 40},
		{Mode: Packed, Length: 5, BOS: id(3)},
	} {
		o.Path, o.Format, o.Separator, o.Subset = path, Text, "|", [2]int{3, 17}
		all := texts(openText(t, o))
		o.Seed = seed(4)
		drawn := texts(openText(t, o))
		if slices.Equal(all, drawn) {
			t.Errorf("%+v: the draw is in order", o)
		}
		o.Samples = 5
		if few := texts(openText(t, o)); !slices.Equal(few, drawn[:5]) {
			t.Errorf("%+v: %q are not the first of %q", o, few, drawn)
		}
		slices.Sort(all)
		slices.Sort(drawn)
		if !slices.Equal(all, drawn) {
			t.Errorf("%+v: %q, want %q", o, drawn, all)
		}
	}
}

func TestJSONL(t *testing.T) {
	dir := t.TempDir()
	path := write(t, dir, "a.jsonl", []byte(`{"text": "one\n", "id": 1}`+"\r\n\n"+`{"id": 2, "text": " z\u00e9ro "}`+"\n"+`{"text": ""}`+"\n"+`{"text":"last","more":{"text":"no"}}`))
	s := openText(t, TextOptions{Path: path, Format: JSONL, Strip: true, BOS: id(1)})
	wantTexts(t, s, "1one", "1zéro", "1last")
	if s.Bytes() != 3+5+4 {
		t.Errorf("%d bytes", s.Bytes())
	}
	path = write(t, dir, "b.jsonl", []byte(`{"body": "ja"}`))
	wantTexts(t, openText(t, TextOptions{Path: path, Format: JSONL, Field: "body"}), "ja")
	for text, want := range map[string]string{
		`{"body": "ja"}`:           `line 1 has no field "text"; set field to one of those it has: body`,
		"\n{\"text\": 5}":          `the field "text" of line 2 is not a string`,
		`{"text": null}`:           "not a string",
		`{"text": "a"} {}`:         "line 1 is not a JSON object",
		`["a"]`:                    "not a JSON object",
		`null`:                     "not a JSON object",
		"{\"text\": \"ab\xff\"}":   "byte 12 is not UTF-8",
		"{\"text\": \"ab\"}\n\xff": "byte 15 is not UTF-8",
	} {
		path := write(t, dir, "c.jsonl", []byte(text))
		_, err := OpenText(context.Background(), TextOptions{Path: path, Format: JSONL}, letters)
		wantError(t, err, want)
	}
}

func TestFolders(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "b.txt", []byte("bb|bbb"))
	write(t, dir, "a.txt", []byte("aa"))
	write(t, dir, "c.md", []byte("cc"))
	write(t, dir, "n1.u16", u16(1, 2, 3, 4, 5))
	write(t, dir, "n1.lengths.json", []byte("[2, 3]"))
	write(t, dir, "n0.u16", u16(6, 7))
	if err := os.Mkdir(filepath.Join(dir, "d.txt"), 0o755); err != nil {
		t.Fatal(err)
	}
	wantTexts(t, openText(t, TextOptions{Path: dir, Format: Text, Separator: "|"}), "aa", "bb", "bbb")
	wantTexts(t, openText(t, TextOptions{Path: dir, Format: Text, Separator: "|", Mode: Packed, Length: 3, Seed: seed(1), EOS: id(0)}), "bbb", "bb0", "aa0")
	wantTexts(t, openText(t, TextOptions{Path: dir, Format: U16}), "67", "12", "345")
	_, err := OpenText(context.Background(), TextOptions{Path: dir, Format: NPY}, nil)
	wantError(t, err, "no file whose name ends in .npy")
	_, err = OpenText(context.Background(), TextOptions{Path: dir, Format: U16, Lengths: "x"}, nil)
	wantError(t, err, "one list of lengths is given for a folder")
}

// npy is a file as NumPy writes it.
func npy(header string, data []byte) []byte {
	for (10+len(header)+1)%64 != 0 {
		header += " "
	}
	header += "\n"
	b := append([]byte(npyMagic), 1, 0)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(header)))
	return append(append(b, header...), data...)
}

func idsTensor(name, dtype, shape string, data []byte) []byte {
	header := fmt.Sprintf(`{%q:{"dtype":%q,"shape":%s,"data_offsets":[0,%d]}}`, name, dtype, shape, len(data))
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	return append(append(b, header...), data...)
}

// The same ids in every format give the same sequences, and the same hash.
func TestIDFormats(t *testing.T) {
	dir := t.TempDir()
	numbers := []int64{1, 2, 3, 4, 5, 6}
	var b2, b4, b8 []byte
	for _, v := range numbers {
		b2 = binary.LittleEndian.AppendUint16(b2, uint16(v))
		b4 = binary.LittleEndian.AppendUint32(b4, uint32(v))
		b8 = binary.LittleEndian.AppendUint64(b8, uint64(v))
	}
	lengths := write(t, dir, "l.json", []byte("[3,0,3]"))
	one := func(descr string, data []byte) []byte {
		return npy(fmt.Sprintf("{'descr': '%s', 'fortran_order': False, 'shape': (6,), }", descr), data)
	}
	two := func(descr string, data []byte) []byte {
		return npy(fmt.Sprintf("{'descr': '%s', 'fortran_order': False, 'shape': (2, 3), }", descr), data)
	}
	var sums []string
	for i, c := range []struct {
		format, lengths string
		b               []byte
	}{
		{U16, lengths, b2},
		{U32, lengths, b4},
		{NPY, lengths, one("<u2", b2)},
		{NPY, lengths, one("<i8", b8)},
		{NPY, "", two("<u2", b2)},
		{NPY, "", two("<u4", b4)},
		{NPY, "", two("<i4", b4)},
		{NPY, "", two("<i8", b8)},
		{Safetensors, lengths, idsTensor("ids", "I32", "[6]", b4)},
		{Safetensors, "", idsTensor("x", "I64", "[2,3]", b8)},
		{Safetensors, "", idsTensor("ids", "U16", "[2,3]", b2)},
		{Safetensors, "", idsTensor("ids", "U32", "[2,3]", b4)},
	} {
		path := write(t, dir, fmt.Sprintf("f%d", i), c.b)
		s, err := OpenText(context.Background(), TextOptions{Path: path, Format: c.format, Lengths: c.lengths, Vocabulary: 7}, nil)
		if err != nil {
			t.Errorf("%s: %v", c.format, err)
			continue
		}
		wantTexts(t, s, "123", "456")
		sums = append(sums, s.SHA256())
		if s.Bytes() != 0 {
			t.Errorf("%d bytes", s.Bytes())
		}
		for _, sd := range []*int64{nil, seed(3)} {
			s, err = OpenText(context.Background(), TextOptions{Path: path, Format: c.format, Lengths: c.lengths, BOS: id(0), Mode: Packed, Length: 4, Seed: sd}, nil)
			if err != nil {
				t.Fatal(err)
			}
			got := texts(s)
			slices.Sort(got)
			if !slices.Contains(got, "0123") || len(got) != 2 {
				t.Errorf("packed: %q", got)
			}
		}
	}
	// The hash's definition.
	h := sha256.New()
	for _, v := range []uint64{2, 3} {
		h.Write(binary.LittleEndian.AppendUint64(nil, v))
	}
	h.Write(b4[:12])
	h.Write(binary.LittleEndian.AppendUint64(nil, 3))
	h.Write(b4[12:])
	want := hex.EncodeToString(h.Sum(nil))
	for _, got := range sums {
		if got != want {
			t.Errorf("hash %s, want %s", got, want)
		}
	}
}

func TestTextRefuses(t *testing.T) {
	dir := t.TempDir()
	text := write(t, dir, "a.txt", []byte("some text|morz"))
	ids := write(t, dir, "a.u16", u16(1, 2, 3, 300))
	path := func(b string) string { return write(t, dir, fmt.Sprintf("x%x", sha256.Sum256([]byte(b))), []byte(b)) }
	for want, o := range map[string]TextOptions{
		`format "csv" is unknown`:                       {Path: text, Format: "csv"},
		`padding would only add ids`:                    {Path: text, Format: Text, Mode: "padded"},
		`mode "x" is unknown`:                           {Path: text, Format: Text, Mode: "x"},
		"length 0":                                      {Path: text, Format: Text, Mode: Packed},
		"length 1":                                      {Path: text, Format: Text, Length: 1},
		"length -5":                                     {Path: text, Format: Text, Length: -5},
		"long documents cannot be left out":             {Path: text, Format: Text, SkipLong: true},
		"a field is for jsonl":                          {Path: text, Format: Text, Field: "x"},
		"a separator is for text":                       {Path: text, Format: JSONL, Separator: "x"},
		"lengths are for ids":                           {Path: text, Format: Text, Lengths: "x"},
		"no characters to count":                        {Path: ids, Format: U16, MinChars: 3},
		"-1 samples":                                    {Path: text, Format: Text, Samples: -1},
		"a vocabulary of -1":                            {Path: text, Format: Text, Vocabulary: -1},
		`path ""`:                                       {Format: Text},
		"the built-in text has no path":                 {Path: text, Format: Embedded},
		"the BOS id 9 is not below":                     {Path: text, Format: Text, Vocabulary: 9, BOS: id(9)},
		"cannot be opened":                              {Path: text + "x", Format: Text},
		"is empty":                                      {Path: path(""), Format: Text},
		"has no documents":                              {Path: path(" \n\t"), Format: Text},
		"byte 5 is not UTF-8":                           {Path: path("abcd\n\xe9tude"), Format: Text},
		"byte 8 is not UTF-8":                           {Path: path("abcd|ab\n\xe9tude"), Format: Text, Separator: "|"},
		"is gzip":                                       {Path: path("\x1f\x8b\x08abc"), Format: Text},
		"subset 1…3 of 1 samples":                       {Path: text, Format: Text, Subset: [2]int{1, 3}},
		"subset 0…9 of 3 sequences":                     {Path: text, Format: Text, Mode: Packed, Length: 4, Subset: [2]int{0, 9}},
		"subset 5…3":                                    {Path: text, Format: Text, Mode: Packed, Length: 4, Subset: [2]int{5, 3}},
		"subset 0…9 of 3 samples":                       {Path: text, Format: Text, Mode: Packed, Length: 4, Subset: [2]int{0, 9}, Seed: seed(0)},
		"5 documents asked for, 2 can be drawn":         {Path: text, Format: Text, Separator: "|", Samples: 5},
		"5 samples asked for, 3":                        {Path: text, Format: Text, Mode: Packed, Length: 4, Samples: 5},
		"5 samples asked for, the subset has 2":         {Path: text, Format: Text, Mode: Packed, Length: 4, Samples: 5, Subset: [2]int{0, 2}},
		"14 ids do not fill one sequence of 15":         {Path: text, Format: Text, Mode: Packed, Length: 15},
		"id 300 at position 3 is not below":             {Path: ids, Format: U16, Vocabulary: 300},
		"document 1 (at byte 10): id 132 at position 3": {Path: text, Format: Text, Separator: "|", Vocabulary: 131},
		"no multiple of an id's 4":                      {Path: path("abcdefg"), Format: U32},
		"not an array of ids in NumPy's format":         {Path: ids, Format: NPY},
		"not a safetensors file":                        {Path: ids, Format: Safetensors},
		"the tensor ids is F32":                         {Path: path(string(idsTensor("ids", "F32", "[1]", make([]byte, 4)))), Format: Safetensors},
		"has shape [1 1 1]":                             {Path: path(string(idsTensor("ids", "I32", "[1,1,1]", make([]byte, 4)))), Format: Safetensors},
		"-1 at position 0 is no id":                     {Path: path(string(idsTensor("ids", "I32", "[1]", []byte{255, 255, 255, 255}))), Format: Safetensors},
		"document 1 has length 3, and 2 ids":            {Path: ids, Format: U16, Lengths: path("[2,3]")},
		"leave 1 ids":                                   {Path: ids, Format: U16, Lengths: path("[2,1]")},
		"not a JSON list":                               {Path: ids, Format: U16, Lengths: path("{}x")},
		"has length -1":                                 {Path: ids, Format: U16, Lengths: path("[-1,5]")},
		"a list of lengths is given for an array":       {Path: path(string(idsTensor("ids", "U16", "[1,1]", u16(1)))), Format: Safetensors, Lengths: path("[1]")},
	} {
		_, err := OpenText(context.Background(), o, letters)
		wantError(t, err, want)
		if err != nil && !strings.Contains(err.Error(), "dataset ") {
			t.Errorf("%v", err)
		}
	}
	_, err := OpenText(context.Background(), TextOptions{Path: text, Format: Text}, nil)
	wantError(t, err, "needs a tokenizer")
	broken := errors.New("no such token")
	_, err = OpenText(context.Background(), TextOptions{Path: text, Format: Text}, func(string) ([]uint32, error) { return nil, broken })
	wantError(t, err, "document 0", "no such token")
	if !errors.Is(err, broken) {
		t.Error("the tokenizer's error is lost")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := OpenText(ctx, TextOptions{Path: text, Format: Text}, letters); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// Documents far longer than the reader's buffer, with separators and
// characters across its border.
func TestLongDocuments(t *testing.T) {
	var parts []string
	for i := range 12 {
		parts = append(parts, strings.Repeat("é", 30_000+i)+"end")
	}
	path := write(t, t.TempDir(), "a.txt", []byte(strings.Join(parts, "<|sep|>")))
	wantTexts(t, openText(t, TextOptions{Path: path, Format: Text, Separator: "<|sep|>"}), parts...)
}

func TestBuiltIn(t *testing.T) {
	text := BuiltIn()
	if n := len(text); n < 20_000 || n > 45_000 {
		t.Errorf("%d bytes", n)
	}
	s := openText(t, TextOptions{Format: Embedded, Strip: true, BOS: id(1)})
	var want int64
	parts := strings.Split(text, BuiltInSeparator)
	for _, p := range parts {
		want += int64(len(strings.TrimSpace(p)))
	}
	if s.N != len(parts) || s.N < 12 || s.Bytes() != want {
		t.Errorf("%d documents of %d bytes, want %d of %d", s.N, s.Bytes(), len(parts), want)
	}
	for i, p := range parts {
		if got := texts(s)[i]; got != "1"+strings.TrimSpace(p) {
			t.Fatalf("document %d is %.80q", i, got)
		}
	}
	if packed := openText(t, TextOptions{Format: Embedded, Mode: Packed, Length: 512, Samples: 16, Seed: seed(0)}); packed.N != 16 {
		t.Errorf("%d sequences", packed.N)
	}
}

func TestNPYHeaders(t *testing.T) {
	good := map[string][]int{
		"{'descr': '<u2', 'fortran_order': False, 'shape': (3,), }":     {3},
		`{"shape":(1,3),"descr":"<u2","fortran_order":False}`:           {1, 3},
		"{'descr': '<u2', 'fortran_order': False, 'shape': (3)}":        {3},
		" { 'descr' :'<u2','fortran_order':False,'shape':( 3 , 1 ) ,} ": {3, 1},
	}
	for header, shape := range good {
		b := npy(header, make([]byte, 6))
		a, err := parseNPY(bytes.NewReader(b), int64(len(b)))
		if err != nil || !slices.Equal(a.shape, shape) || a.begin+6 != int64(len(b)) {
			t.Errorf("%s: %+v, %v", header, a, err)
		}
	}
	for _, header := range []string{
		"", "{", "{}", "x", "{'descr': '<u2', 'fortran_order': False}",
		"{'descr': '<u2', 'fortran_order': True, 'shape': (3,), }",
		"{'descr': '>u2', 'fortran_order': False, 'shape': (3,), }",
		"{'descr': '|O', 'fortran_order': False, 'shape': (3,), }",
		"{'descr': '<u2', 'fortran_order': False, 'shape': (), }",
		"{'descr': '<u2', 'fortran_order': False, 'shape': (1,1,3), }",
		"{'descr': '<u2', 'fortran_order': False, 'shape': (4,), }",
		"{'descr': '<u2', 'fortran_order': False, 'shape': (2,), }",
		"{'descr': '<u2', 'fortran_order': False, 'shape': (0,), }",
		"{'descr': '<u2', 'fortran_order': False, 'shape': (-3,), }",
		"{'descr': '<u2', 'fortran_order': False, 'shape': (3, 9999999999999999999), }",
		"{'descr': '<u2', 'fortran_order': False, 'shape': (4294967296, 4294967296), }",
		"{'descr': '<u2', 'fortran_order': False, 'shape': (3,), 'shape': (3,), }",
		"{'descr': '<u2', 'fortran_order': False, 'shape': (3,), 'x': (3,), }",
		"{'descr': '<u2', 'fortran_order': False, 'shape': (3,), } x",
		"{'descr': '<u2 'fortran_order': False, 'shape': (3,), }",
		"{'descr': '<u2', 'fortran_order': False 'shape': (3,), }",
		"{'descr': '<u2', 'fortran_order': False, 'shape': (3,,), }",
		"{'descr': '<u2', 'fortran_order': False, 'shape': (3,)",
	} {
		b := npy(header, make([]byte, 6))
		if a, err := parseNPY(bytes.NewReader(b), int64(len(b))); err == nil {
			t.Errorf("%s passed as %+v", header, a)
		}
	}
	b := npy("{'descr': '<u2', 'fortran_order': False, 'shape': (3,), }", make([]byte, 6))
	for n := range b {
		if _, err := parseNPY(bytes.NewReader(b[:n]), int64(n)); err == nil {
			t.Errorf("%d of %d bytes passed", n, len(b))
		}
	}
}

func FuzzNPY(f *testing.F) {
	f.Add(npy("{'descr': '<u2', 'fortran_order': False, 'shape': (3,), }", make([]byte, 6)))
	f.Add(npy("{'descr': '<i8', 'fortran_order': False, 'shape': (1, 2), }", make([]byte, 16)))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := parseNPY(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		total := int64(a.element.Size())
		for _, n := range a.shape {
			total *= int64(n)
		}
		if total < 1 || a.begin+total != int64(len(b)) {
			t.Errorf("%+v of %d bytes", a, len(b))
		}
		if _, err := appendIDs(nil, b[a.begin:], a.element); err != nil && a.element.Size() < 4 {
			t.Error(err)
		}
	})
}

func FuzzJSONL(f *testing.F) {
	f.Add([]byte(`{"text": "one"}`))
	f.Add([]byte(`{"text": "a\ud800", "text": null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if text, err := field(b, "", 1); err == nil && utf8.Valid(b) && !utf8.ValidString(text) {
			t.Errorf("%q gives %q", b, text)
		}
	})
}

func TestRealText(t *testing.T) {
	path := shared(t, "text-tinystories/valid.txt")
	// Counted and hashed with Python: split, strip, len > 50, the first 200
	// joined with a zero byte.
	o := TextOptions{Path: path, Format: Text, Separator: "<|endoftext|>", Strip: true, MinChars: 51, Samples: 200, BOS: id(1)}
	s := openText(t, o)
	if s.N != 200 || s.Of != 3116 || s.Bytes() != 163091 || s.Total() != 163003+200 {
		t.Errorf("%d of %d documents, %d bytes, %d characters", s.N, s.Of, s.Bytes(), s.Total())
	}
	all := texts(s)
	for i := range all {
		all[i] = all[i][1:]
	}
	sum := sha256.Sum256([]byte(strings.Join(all, "\x00")))
	if got := hex.EncodeToString(sum[:]); got != "00067f998fa46ee93b84b08294b4056ed50ad6b0a3ef6e0779a5d6af08a0bae3" {
		t.Errorf("hash %s", got)
	}
	o.Path, o.Samples = shared(t, "text-tinystories/test.txt"), 128
	if s = openText(t, o); s.Of != 3117 {
		t.Errorf("test.txt: %d documents", s.Of)
	}
}

func TestRealIDs(t *testing.T) {
	for _, c := range []struct {
		name      string
		of, total int
	}{{"calib", 700, 251789}, {"valid", 400, 143700}} {
		path := shared(t, "llm-stories260k/"+c.name+".u16")
		s := openText(t, TextOptions{Path: path, Format: U16, Vocabulary: 512})
		if s.N != c.of || s.Of != c.of || s.Total() != c.total {
			t.Errorf("%s: %d of %d documents, %d ids", c.name, s.N, s.Of, s.Total())
		}
		for i := range s.N {
			if ids := s.Tokens(i); ids[0] != 1 || len(ids) > 512 || slices.Contains(ids[1:], 1) {
				t.Fatalf("%s: document %d begins with %d and has %d ids", c.name, i, ids[0], len(ids))
			}
		}
	}
	// The ids of a document stand in EXPECTED.json too.
	var expected struct {
		Docs []struct{ IDs []uint32 } `json:"docs"`
	}
	b, err := os.ReadFile(shared(t, "llm-stories260k/EXPECTED.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &expected); err != nil {
		t.Fatal(err)
	}
	s := openText(t, TextOptions{Path: shared(t, "llm-stories260k/valid.u16"), Format: U16, Samples: 200})
	if s.Total() != 73300 {
		t.Errorf("%d ids in 200 documents", s.Total())
	}
	if len(expected.Docs) == 0 {
		t.Fatal("no documents in EXPECTED.json")
	}
	for i, d := range expected.Docs {
		if got := s.Tokens(i); !slices.Equal(got[:min(len(got), len(d.IDs))], d.IDs[:min(len(got), len(d.IDs))]) {
			t.Errorf("document %d: %v, want %v", i, got, d.IDs)
		}
	}
}
