package loader

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fettle-dev/fettle/internal/dtype"
)

// ggufFile builds GGUF files, good ones and others.
type ggufFile struct {
	version uint32
	order   binary.ByteOrder
	keys    []string // each a key with its value
	infos   []string
	data    []byte
}

func newGGUF() *ggufFile { return &ggufFile{version: 3, order: binary.LittleEndian} }

// le is little-endian bytes of numbers of any size.
func le(values ...any) string {
	var b bytes.Buffer
	for _, v := range values {
		if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			panic(err)
		}
	}
	return b.String()
}

func ggufText(s string) string { return le(uint64(len(s))) + s }

// key adds a metadata key of a type, whose value is given as bytes.
func (g *ggufFile) key(name string, kind uint32, value string) *ggufFile {
	g.keys = append(g.keys, ggufText(name)+le(kind)+value)
	return g
}

// info adds a tensor's entry as it is, dimensions in the file's order.
func (g *ggufFile) info(name string, kind uint32, offset uint64, dims ...uint64) *ggufFile {
	g.infos = append(g.infos, ggufText(name)+le(uint32(len(dims)), dims, kind, offset))
	return g
}

// add adds a tensor with its data.
func (g *ggufFile) add(name string, kind uint32, data []byte, dims ...uint64) *ggufFile {
	g.data = append(g.data, make([]byte, -len(g.data)&31)...)
	g.info(name, kind, uint64(len(g.data)), dims...)
	g.data = append(g.data, data...)
	return g
}

func (g *ggufFile) header() []byte {
	b := []byte(ggufMagic + le(g.version, uint64(len(g.infos)), uint64(len(g.keys))))
	return append(b, strings.Join(g.keys, "")+strings.Join(g.infos, "")...)
}

func (g *ggufFile) bytes() []byte {
	b := g.header()
	b = append(b, make([]byte, -len(b)&31)...)
	return append(b, g.data...)
}

// goodGGUF has a plain tensor, one in blocks and one that cannot be read.
func goodGGUF() *ggufFile {
	block := append([]byte{0, 0x38}, bytes.Repeat([]byte{0x97}, 16)...) // ½·(7−8), ½·(9−8)
	return newGGUF().
		key("general.name", ggufString, ggufText("small")).
		key("n", ggufUint32, le(uint32(7))).
		key("list", ggufArray, le(uint32(3), uint64(2), int16(3), int16(-1))).
		add("a", 0, floats(1, 2, 3, 4, 5, 6), 3, 2).
		add("q", 2, slices.Concat(block, block), 32, 2).
		add("x", 16, make([]byte, 66), 256).
		add("s", 24, []byte{0xff}, 1)
}

func TestGGUF(t *testing.T) {
	for _, version := range []uint32{2, 3} {
		file := goodGGUF()
		file.version = version
		c := mustOpen(t, append(file.bytes(), "bytes behind the tensors"...))
		if c.Format() != GGUF {
			t.Errorf("format %q", c.Format())
		}
		if want := map[string]string{"general.name": "small", "n": "7", "list": "[3, -1]"}; !cmp.Equal(want, c.Metadata()) {
			t.Error(cmp.Diff(want, c.Metadata()))
		}
		if diff := cmp.Diff([]Skipped{{"x", "GGUF's IQ2_XXS blocks cannot be read"}}, c.Skipped()); diff != "" {
			t.Error(diff)
		}
		a, _ := c.Lookup("a")
		q, _ := c.Lookup("q")
		if a.DType != dtype.F32 || a.Encoding() != "" || !cmp.Equal(a.Shape, []int{2, 3}) || a.StoredBytes() != 24 {
			t.Errorf("a is %v", a)
		}
		if q.DType != dtype.F32 || q.Encoding() != "Q4_0" || !cmp.Equal(q.Shape, []int{2, 32}) || q.Bytes() != 256 || q.StoredBytes() != 36 {
			t.Errorf("q is %v", q)
		}
		if diff := cmp.Diff([]float32{1, 2, 3, 4, 5, 6}, mustRead(t, c, "a")); diff != "" {
			t.Error(diff)
		}
		half := slices.Repeat([]float32{-.5}, 16)
		row := append(half, slices.Repeat([]float32{.5}, 16)...)
		if diff := cmp.Diff(slices.Repeat(row, 2), mustRead(t, c, "q")); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff([]float32{-1}, mustRead(t, c, "s")); diff != "" {
			t.Error(diff)
		}
		if err := c.ReadFloat32("x", nil); err == nil || !strings.Contains(err.Error(), "IQ2_XXS") {
			t.Errorf("reading what cannot be read: %v", err)
		}
		raw := make([]byte, 36)
		if err := c.ReadStored("q", raw); err != nil || !bytes.Equal(raw, file.data[32:68]) {
			t.Errorf("stored bytes %x, %v", raw, err)
		}
		if err := c.ReadStored("q", raw[1:]); err == nil {
			t.Error("a short destination is accepted")
		}
		one := make([]byte, 24)
		if err := c.ReadStored("a", one); err != nil || !bytes.Equal(one, floats(1, 2, 3, 4, 5, 6)) {
			t.Errorf("plain stored bytes %x, %v", one, err)
		}
	}
}

// TestGGML reads a file that ggml wrote, with each type beside its values as ggml
// decodes it: they are the same to the bit, whole, by rows and in a view.
func TestGGML(t *testing.T) {
	c, err := Open(context.Background(), "testdata/ggml.gguf")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for key, want := range map[string]string{
		"general.architecture": "none", "general.file_type": "15", "test.float": "0.1", "test.bool": "true",
		"test.negative": "-3", "test.numbers": "[16, -24, 0]", "test.strings": `["a", "b c"]`, "tokenizer.ggml.tokens": "",
	} {
		if got := c.Metadata()[key]; got != want {
			t.Errorf("%s is %q, want %q", key, got, want)
		}
	}
	seen := 0
	for _, info := range c.Tensors() {
		if info.Encoding() == "" {
			continue
		}
		seen++
		want := mustRead(t, c, info.Name+".values")
		same := func(what string, got, want []float32) {
			t.Helper()
			for i := range want {
				if math.Float32bits(got[i]) != math.Float32bits(want[i]) {
					t.Fatalf("%s, %s: value %d is %v, want %v", info.Name, what, i, got[i], want[i])
				}
			}
		}
		same("whole", mustRead(t, c, info.Name), want)
		row := make([]float32, 256)
		if err := c.ReadRowFloat32(info.Name, 1, row); err != nil {
			t.Fatal(err)
		}
		same("row", row, want[256:])
		v, err := c.View([]Part{{Name: "v", From: info.Name, Keep: [][]int{{1}, {3, 4, 40, 255}}}})
		if err != nil {
			t.Fatal(err)
		}
		cut, _ := v.Lookup("v")
		if cut.Encoding() != "" || cut.StoredBytes() != 16 {
			t.Errorf("cut: encoding %q, %d bytes", cut.Encoding(), cut.StoredBytes())
		}
		same("cut", mustRead(t, v, "v"), []float32{want[259], want[260], want[296], want[511]})
	}
	if seen != 13 {
		t.Errorf("%d types compared, want 13", seen)
	}
}

// TestBlockReader reads from and to any byte, over the ends of blocks and buffers.
func TestBlockReader(t *testing.T) {
	const blocks = 3000
	raw := make([]byte, 34*blocks)
	for i := range raw {
		raw[i] = byte(i*i/7) % 0x70 // no scale is NaN
	}
	r := &blockReader{kind: ggufTypes[8], data: bytes.NewReader(raw), size: int64(len(raw))}
	var all []byte
	for i := range blocks {
		values := make([]float32, 32)
		decodeQ8_0(values, raw[34*i:])
		all = append(all, floats(values...)...)
	}
	for _, off := range []int{0, 1, 4, 127, 128, 129, 128 * 1000, 128*2999 + 3, len(all)} {
		for _, n := range []int{0, 1, 128, 5000, 128 * 1500, len(all)} {
			got := make([]byte, n)
			read, err := r.ReadAt(got, int64(off))
			want := all[off:min(off+n, len(all))]
			if (err != nil) != (read < n) || !bytes.Equal(got[:read], want) {
				t.Errorf("%d bytes from %d: read %d, %v", n, off, read, err)
			}
		}
	}
}

// TestGGUFCut reads all of each file with any of its last bytes missing.
func TestGGUFCut(t *testing.T) {
	content := goodGGUF().bytes()
	for n := range content {
		if err := openFuzzed(t, content[:n]); err == nil {
			t.Errorf("the first %d of %d bytes open", n, len(content))
		}
	}
	for i := range content {
		for _, change := range []byte{0xff, 0x01, 0x80} {
			damaged := bytes.Clone(content)
			damaged[i] ^= change
			_ = openFuzzed(t, damaged) // may open or not, must not panic
		}
	}
}

func TestGGUFHostile(t *testing.T) {
	huge := uint64(1) << 60
	f32 := floats(1, 2, 3, 4)
	nested := ""
	for range 100 {
		nested += le(uint32(ggufArray), uint64(1))
	}
	big := goodGGUF().bytes()
	copy(big[4:], "\x00\x00\x00\x03")
	twice := newGGUF().key("k", 0, "a").key("k", 0, "b")
	for name, c := range map[string]struct {
		content []byte
		want    string
	}{
		"big-endian":            {big, "big-endian"},
		"version 1":             {[]byte(ggufMagic + le(uint32(1), uint32(0), uint32(0))), "version 1 of GGUF"},
		"version 4":             {[]byte(ggufMagic + le(uint32(4), huge, huge)), "version 4"},
		"2^60 tensors":          {[]byte(ggufMagic + le(uint32(3), huge, uint64(0))), "at most"},
		"2^60 keys":             {[]byte(ggufMagic + le(uint32(3), uint64(0), huge)), "at most"},
		"more tensors":          {[]byte(ggufMagic + le(uint32(3), uint64(1000), uint64(0))), "more than the 8 bytes that follow"},
		"key of 1 TiB":          {newGGUF().key("k", 0, "1").withLength(1 << 40), "string of 1099511627776 bytes"},
		"long key":              {newGGUF().key(strings.Repeat("k", 1<<16), 0, "1").bytes(), "too long"},
		"key not UTF-8":         {newGGUF().key("\xff", 0, "1").bytes(), "not UTF-8"},
		"same key":              {twice.bytes(), `"k" twice`},
		"value of 1 TiB":        {newGGUF().key("k", ggufString, le(uint64(1<<40))).bytes(), "string of 1099511627776 bytes"},
		"unknown value":         {newGGUF().key("k", 13, "1").bytes(), "unknown type 13"},
		"boolean 2":             {newGGUF().key("k", ggufBool, "\x02").bytes(), "boolean is 2"},
		"array of 2^60":         {newGGUF().key("k", ggufArray, le(uint32(0), huge)).bytes(), "array elements"},
		"array of 2^60 strings": {newGGUF().key("k", ggufArray, le(uint32(ggufString), huge)).bytes(), "array elements"},
		"array of 2^63 doubles": {newGGUF().key("k", ggufArray, le(uint32(ggufFloat64), uint64(1<<63))).bytes(), "array elements"},
		"array of unknown":      {newGGUF().key("k", ggufArray, le(uint32(99), uint64(0))).bytes(), "unknown type 99"},
		"nested arrays":         {newGGUF().key("k", ggufArray, nested).bytes(), "nested"},
		"alignment 0":           {newGGUF().key("general.alignment", ggufUint32, le(uint32(0))).bytes(), "power of two"},
		"alignment 24":          {newGGUF().key("general.alignment", ggufUint32, le(uint32(24))).bytes(), "power of two"},
		"alignment a string":    {newGGUF().key("general.alignment", ggufString, ggufText("32")).bytes(), "power of two"},
		"same tensor":           {newGGUF().add("t", 0, f32, 4).add("t", 0, f32, 4).bytes(), `two tensors have the name "t"`},
		"tensor not UTF-8":      {newGGUF().add("\xff", 0, f32, 4).bytes(), "not UTF-8"},
		"five dimensions":       {newGGUF().add("t", 0, f32, 4, 1, 1, 1, 1).bytes(), "5 dimensions"},
		"2^32 dimensions":       {newGGUF().with(ggufText("t") + le(uint32(math.MaxUint32))).bytes(), "4294967295 dimensions"},
		"dimension 2^63":        {newGGUF().add("t", 0, f32, 1<<63).bytes(), "dimension of"},
		"overflow":              {newGGUF().add("t", 0, f32, 1<<31, 1<<31, 1<<31).bytes(), "overflows"},
		"overflow in bytes":     {newGGUF().add("t", 28, f32, 1<<61).bytes(), "overflows"},
		"overflow to nothing":   {newGGUF().add("t", 0, f32, 1<<32, 1<<32, 0).add("u", 0, f32, 1<<32, 1<<32).bytes(), "overflows"},
		"half a block":          {newGGUF().add("t", 2, f32, 16, 2).bytes(), "blocks of 32"},
		"beyond the file":       {newGGUF().info("t", 0, 0, 4).bytes(), "cut short"},
		"far beyond the file":   {newGGUF().info("t", 0, 1<<62, 4).bytes(), "cut short"},
		"offset 2^63":           {newGGUF().info("t", 0, 1<<63, 4).bytes(), "starts at byte"},
		"misaligned":            {newGGUF().add("t", 0, f32, 2).info("u", 0, 8, 2).bytes(), "alignment"},
		"overlap":               {newGGUF().add("t", 0, f32, 4).info("u", 0, 0, 4).bytes(), "an overlap"},
		"hole":                  {newGGUF().add("t", 0, slices.Repeat(f32, 16), 4).info("u", 0, 64, 4).bytes(), "a hole"},
		"unknown type far away": {newGGUF().info("t", 77, 1<<40, 4).bytes(), "cut short"},
	} {
		began := time.Now()
		err := openFuzzed(t, c.content)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one with %q", name, err, c.want)
		}
		if d := time.Since(began); d > time.Second {
			t.Errorf("%s: took %v", name, d)
		}
	}
	unknown := mustOpen(t, newGGUF().add("t", 77, f32, 4).add("u", 0, f32, 4).bytes())
	if diff := cmp.Diff([]Skipped{{"t", "GGUF's type 77 is unknown"}}, unknown.Skipped()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]float32{1, 2, 3, 4}, mustRead(t, unknown, "u")); diff != "" {
		t.Error(diff)
	}
}

// with adds bytes in the place of a tensor's entry.
func (g *ggufFile) with(info string) *ggufFile {
	g.infos = append(g.infos, info)
	return g
}

// withLength returns the file with another length of its first key.
func (g *ggufFile) withLength(n uint64) []byte {
	b := g.bytes()
	binary.LittleEndian.PutUint64(b[24:], n)
	return b
}

// sparse writes a file of a size of which only the beginning is there.
func sparse(t *testing.T, name string, head []byte, size int64) string {
	t.Helper()
	path := write(t, name, head)
	if err := os.Truncate(path, size); err != nil {
		t.Skip("no sparse files here: ", err)
	}
	return path
}

// TestGGUFLarge opens files of gigabytes, good and bad, in little time: what they
// hold is not read, nor long values of their metadata.
func TestGGUFLarge(t *testing.T) {
	vocabulary := make([]string, 200_000)
	for i := range vocabulary {
		vocabulary[i] = ggufText(fmt.Sprintf("token%d", i))
	}
	good := newGGUF().
		key("tokens", ggufArray, le(uint32(ggufString), uint64(len(vocabulary)))+strings.Join(vocabulary, "")).
		key("scores", ggufArray, le(uint32(ggufFloat32), uint64(100_000))+string(make([]byte, 400_000))).
		key("template", ggufString, ggufText(strings.Repeat("x", maxGGUFValue+1))).
		key("empty", ggufArray, le(uint32(ggufString), uint64(0))).
		info("t", 14, 0, 1<<20, 12288)
	path := sparse(t, "good.gguf", good.header(), 11<<30)
	began := time.Now()
	c, err := Open(context.Background(), path)
	took := time.Since(began)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if took > 200*time.Millisecond {
		t.Errorf("opening took %v", took)
	}
	if diff := cmp.Diff(map[string]string{"empty": "[]"}, c.Metadata()); diff != "" {
		t.Error(diff)
	}
	if tensor, _ := c.Lookup("t"); tensor.StoredBytes() != 12288<<20/256*210 {
		t.Errorf("%d bytes", tensor.StoredBytes())
	}
	for name, head := range map[string][]byte{
		"zeros":   []byte(ggufMagic + le(uint32(3), uint64(maxTensors), uint64(maxGGUFKeys))),
		"strings": newGGUF().key("k", ggufArray, le(uint32(ggufString), uint64(1<<30))).header(),
		"string":  newGGUF().key("k", ggufString, le(uint64(1<<33))).header(),
		"arrays":  newGGUF().key("k", ggufArray, le(uint32(ggufArray), uint64(1<<29))).header(),
	} {
		path := sparse(t, name, head, 11<<30)
		began := time.Now()
		_, err := Open(context.Background(), path)
		if _, ok := errors.AsType[*FormatError](err); !ok {
			t.Errorf("%s: error %v", name, err)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("%s: took %v", name, took)
		}
	}
}

func TestGGUFSplit(t *testing.T) {
	part := func(i, n int, name string) []byte {
		return newGGUF().
			key("split.no", 2, le(uint16(i))).key("split.count", 2, le(uint16(n))).key("split.tensors.count", 5, le(int32(2))).
			add(name, 0, floats(float32(i)), 1).bytes()
	}
	folder := func(files map[string][]byte) string {
		dir := filepath.Join(t.TempDir(), "a[b]*")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		for name, content := range files {
			if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	good := folder(map[string][]byte{"m-00001-of-00002.gguf": part(0, 2, "a"), "m-00002-of-00002.gguf": part(1, 2, "b")})
	for _, path := range []string{good, filepath.Join(good, "m-00001-of-00002.gguf"), filepath.Join(good, "m-00002-of-00002.gguf")} {
		c, err := Open(context.Background(), path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"a", "b"}, names(c)); diff != "" {
			t.Error(diff)
		}
		if got := mustRead(t, c, "b"); got[0] != 1 {
			t.Errorf("b is %v", got)
		}
		_ = c.Close()
	}
	single, err := Open(context.Background(), folder(map[string][]byte{"m.gguf": goodGGUF().bytes(), "README.md": nil}))
	if err != nil {
		t.Fatal(err)
	}
	_ = single.Close()
	for name, c := range map[string]struct {
		files map[string][]byte
		want  string
	}{
		"missing": {map[string][]byte{"m-00001-of-00002.gguf": part(0, 2, "a")}, "m-00002-of-00002.gguf is missing"},
		"renamed": {map[string][]byte{"m-00001-of-00002.gguf": part(1, 2, "a"), "m-00002-of-00002.gguf": part(0, 2, "b")}, "renamed"},
		"twice":   {map[string][]byte{"m-00001-of-00002.gguf": part(0, 2, "a"), "m-00002-of-00002.gguf": part(1, 2, "a")}, "two tensors"},
		"fewer":   {map[string][]byte{"m-00001-of-00001.gguf": part(0, 1, "a")}, "the first says 2"},
		"damaged": {map[string][]byte{"m-00001-of-00002.gguf": part(0, 2, "a"), "m-00002-of-00002.gguf": []byte("x")}, "m-00002-of-00002.gguf: "},
		"two":     {map[string][]byte{"a.gguf": part(0, 1, "a"), "b.gguf": part(0, 1, "a")}, "2 GGUF files"},
		"none":    {nil, "no other weight file"},
	} {
		_, err := Open(context.Background(), folder(c.files))
		if _, ok := errors.AsType[*FormatError](err); !ok || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one with %q", name, err, c.want)
		}
	}
}

func FuzzGGUF(f *testing.F) {
	f.Add(goodGGUF().bytes())
	f.Add(newGGUF().bytes())
	f.Add(newGGUF().key("k", ggufArray, le(uint32(ggufArray), uint64(1), uint32(ggufString), uint64(1))+ggufText("x")).
		key("general.alignment", ggufUint32, le(uint32(64))).key("f", ggufFloat64, le(1.5)).bytes())
	for number, kind := range ggufTypes {
		f.Add(newGGUF().add("t", number, make([]byte, kind.size), uint64(kind.block)).bytes())
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		_ = openFuzzed(t, append([]byte(ggufMagic), content[min(len(content), len(ggufMagic)):]...)) // no other format
	})
}
