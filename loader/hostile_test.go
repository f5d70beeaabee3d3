package loader

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/fettle-dev/fettle/internal/safetensors"
)

// childPath is set in a process that TestHostileFiles starts.
const childPath = "FETTLE_TEST_OPEN"

func TestMain(m *testing.M) {
	if path := os.Getenv(childPath); path != "" {
		openAndReport(path)
		return
	}
	m.Run()
}

// openAndReport opens, reads and scans a file, and prints what came of it, how long
// opening and scanning took in milliseconds, and the peak of the memory in bytes.
func openAndReport(path string) {
	start := time.Now()
	c, err := Open(context.Background(), path)
	opened := time.Since(start)
	outcome := "opened"
	if err == nil {
		for i, t := range c.tensors {
			if n := t.Bytes(); n <= 1<<20 && i < 100_000 && err == nil {
				err = c.ReadBytes(t.Name, make([]byte, n))
			}
		}
	}
	if bad, ok := errors.AsType[*FormatError](err); ok {
		outcome = "refused: " + bad.Error()
	} else if err != nil {
		outcome = "failed: " + err.Error()
	}
	c = nil
	debug.FreeOSMemory() // so that the peak is that of either
	start = time.Now()
	s, scanErr := Scan(context.Background(), path)
	scanned := time.Since(start)
	if scanErr != nil {
		outcome = "scan failed: " + scanErr.Error()
	} else if s.Count(Dangerous) > 0 {
		outcome += " (dangerous)"
	}
	var peak int64
	status, _ := os.ReadFile("/proc/self/status") // absent but on Linux
	for line := range strings.Lines(string(status)) {
		if text, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			peak, _ = strconv.ParseInt(strings.Fields(text)[0], 10, 64)
		}
	}
	fmt.Fprintf(os.Stdout, "%d %d %d %s\n", opened.Milliseconds(), scanned.Milliseconds(), peak<<10, strings.ReplaceAll(outcome, "\n", "?"))
}

// hostileFile is a file made to take time or memory, to crash, or to mislead.
type hostileFile struct {
	content []byte
	header  int64  // bytes of its own header: the JSON, pickle or directory
	opens   bool   // whether it opens: what it does is odd, not wrong
	holes   int64  // bytes of zeros that follow the content
	as      string // its name, if it matters
}

// openInChild opens a file in a process of its own.
func openInChild(t *testing.T, path string) (open, scan time.Duration, peak int64, outcome string) {
	t.Helper()
	ctx, stop := context.WithTimeout(context.Background(), 60*time.Second)
	defer stop()
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), childPath+"="+path)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("the process ended with %v: %.500s", err, out)
	}
	fields := strings.SplitN(strings.TrimSpace(string(out)), " ", 4)
	if len(fields) != 4 {
		t.Fatalf("unexpected output %.500q", out)
	}
	var n [3]int64
	for i := range n {
		if n[i], err = strconv.ParseInt(fields[i], 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	return time.Duration(n[0]) * time.Millisecond, time.Duration(n[1]) * time.Millisecond, n[2], fields[3]
}

// TestHostileFiles holds that each file gets one clear error in bounded time and
// memory, in a process that ends as it should.
func TestHostileFiles(t *testing.T) {
	for name, h := range hostileFiles(t) {
		t.Run(name, func(t *testing.T) {
			as := h.as
			if as == "" {
				as = "model.pt"
			}
			path := filepath.Join(t.TempDir(), as)
			if err := os.WriteFile(path, h.content, 0o600); err != nil {
				t.Fatal(err)
			}
			if h.holes > 0 {
				if err := os.Truncate(path, int64(len(h.content))+h.holes); err != nil {
					t.Fatal(err)
				}
			}
			open, scan, peak, outcome := openInChild(t, path)
			if want := map[bool]string{true: "opened", false: "refused: "}[h.opens]; !strings.HasPrefix(outcome, want) || len(outcome) > 1000 {
				t.Errorf("%.300s, want %q", outcome, want)
			}
			t.Logf("open %v, scan %v, peak %d MB, header %d MB: %.200s", open, scan, peak>>20, h.header>>20, outcome)
			if slack := 3 * time.Second; open > slack || scan > slack { // a second, on a machine that does nothing else
				t.Errorf("opening took %v, scanning %v", open, scan)
			}
			if most := h.header + 100<<20; peak > most {
				t.Errorf("the peak of memory is %d MB over the header's %d", (peak-h.header)>>20, h.header>>20)
			}
		})
	}
}

func hostileFiles(t *testing.T) map[string]hostileFile {
	files := map[string]hostileFile{}
	long := os.Getenv("FETTLE_LONG") != ""
	addPickle := func(name string, opens bool, body string) {
		pickle := "\x80\x04" + body + "."
		files[name+", zip"] = hostileFile{content: torchZip(t, pickle, []float32{1, 2}), header: int64(len(pickle)), opens: opens}
		if !long && len(pickle) > 1<<20 {
			return
		}
		files[name+", legacy"] = hostileFile{content: torchLegacy(pickle, []float32{1, 2}), header: int64(len(pickle)), opens: opens}
	}
	w := pDict(pW)
	many := func(n int, s string) string { return strings.Repeat(s, n) }
	addPickle("lists", false, "("+many(9<<20, "]")+"1"+w)
	addPickle("dicts", false, "("+many(9<<20, "}")+"1"+w)
	addPickle("nothing", false, "("+many(30<<20, "N")+"1"+w)
	addPickle("floats", false, "("+many(4<<20, "G\x00\x00\x00\x00\x00\x00\x00\x01")+"1"+w)
	addPickle("memo", false, "N"+many(9<<20, "\x94")+"0"+w)
	addPickle("wide memo", true, wideMemo(1<<20)+w)
	// As much as the limits let pass.
	addPickle("objects: lists", true, "("+many(320_000, "]")+"t0"+w)
	addPickle("objects: dicts", true, "("+many(230_000, "}")+"t0"+w)
	addPickle("objects: calls", true, pGlobal("a", "b")+many(250_000, ")R")+"0"+w)
	addPickle("objects: entries", true, "}("+entries(320_000)+"u0"+w)
	addPickle("objects: texts", true, "]("+many(600_000, pStr("x"))+"e0"+w)
	addPickle("objects: long texts", true, "("+many(11, pStr(many(1<<20, "x")))+"10"[:1]+w)
	addPickle("objects: classes", true, "("+otherClasses(80_000)+"1"+w)
	addPickle("objects: tensors", true, pDict(otherTensors(14_000)))
	addPickle("objects: one tensor listed often", true, "]("+pTensor("0", 2, nil, nil)+"q\x01"+many(120_000, "h\x01")+"e")
	addPickle("a key of 2^32", false, "Nr\xff\xff\xff\xff0"+w)
	addPickle("a key of 2^26", true, "Nr\xff\xff\xff\x030"+w)
	addPickle("memo used", false, wideMemo(1<<20)+"("+usedMemo(1<<20)+"1"+w)
	addPickle("entries", false, "}("+entries(1<<20)+"u0"+w)
	addPickle("classes", false, "("+many(4<<20, "ca\nb\n")+"1"+w)
	addPickle("other classes", false, otherClasses(1<<20)+w)
	addPickle("calls", false, pGlobal("a", "b")+many(4<<20, ")R")+"0"+w)
	addPickle("duplicated", false, "]"+many(4<<20, "2a")+"0"+w)
	addPickle("one string", false, "X"+"\x00\x00\x00\x04"+many(1<<26, "x")+"0"+w)
	addPickle("one bytes", true, "B"+"\x00\x00\x00\x04"+many(1<<26, "x")+"0"+w)
	addPickle("a line without end", false, "S'"+many(64<<20, "x"))
	addPickle("3 MB of digits", false, "I"+many(3<<20, "9")+"\n0"+w)
	addPickle("3 MB of digits, long", false, "L"+many(3<<20, "9")+"L\n0"+w)
	addPickle("3 MB of digits, float", false, "F"+many(3<<20, "9")+"\n0"+w)
	addPickle("3 MB integer", false, "\x8b\x00\x00\x30\x00"+many(3<<20, "\x7f")+"0"+w)
	for i, op := range []string{"X", "T", "B", "\x8b"} {
		addPickle(fmt.Sprintf("length of 4 GiB, %d", i), false, op+"\xff\xff\xff\x7f"+w)
	}
	for i, op := range []string{"\x8d", "\x8e", "\x96", "\x95"} {
		addPickle(fmt.Sprintf("length of 1 TiB, %d", i), false, op+"\x00\x00\x00\x00\x00\x01\x00\x00"+w)
	}
	addPickle("marks", false, many(1<<20, "(")+w)
	addPickle("nested lists", false, many(1<<20, "]")+many(1<<20-1, "a"))
	addPickle("nested tuples", false, "N"+many(4<<20, "\x85"))
	addPickle("nested states", false, pGlobal("a", "b")+")\x81"+many(1<<18, "}"+pStr("x"))+many(1<<18, "s")+"b")
	add := func(name string, h hostileFile) { files[name] = h }
	pkl := []byte("\x80\x02" + w + ".")
	data := entry{"a/data/0", floats(1, 2)}
	add("zip: path upwards", hostileFile{content: zipOf(t, entry{"a/data.pkl", pkl}, data, entry{"a/../../x", nil})})
	add("zip: absolute path", hostileFile{content: zipOf(t, entry{"a/data.pkl", pkl}, data, entry{"/etc/passwd", nil})})
	add("zip: duplicates", hostileFile{content: zipOf(t, entry{"a/data.pkl", pkl}, data, data)})
	add("zip: second data.pkl", hostileFile{content: zipOf(t, entry{"a/data.pkl", pkl}, data, entry{"data.pkl", pkl})})
	add("zip: encrypted", hostileFile{content: encrypted(zipOf(t, entry{"a/data.pkl", pkl}, data))})
	add("zip: overlapping", hostileFile{content: overlapping(t)})
	add("zip: local header differs", hostileFile{content: otherLocalName(zipOf(t, entry{"a/data.pkl", pkl}, data))})
	add("zip: a terabyte", hostileFile{content: bomb(t, pkl)})
	add("safetensors: 1 TiB", hostileFile{content: []byte("\x00\x00\x00\x00\x00\x01\x00\x00{}"), as: "model.safetensors"})
	add("safetensors: cut", hostileFile{content: []byte("\xff\xff\x00\x00\x00\x00\x00\x00{}"), as: "model.safetensors"})
	add("empty", hostileFile{})
	add("zeros", hostileFile{holes: 1 << 30})
	if long {
		addLargeFiles(t, add, w)
	}
	return files
}

// addLargeFiles adds those that take seconds to make.
func addLargeFiles(t *testing.T, add func(name string, h hostileFile), w string) {
	many := func(n int, s string) string { return strings.Repeat(s, n) }
	pkl := []byte("\x80\x02" + w + ".")
	data := entry{"a/data/0", floats(1, 2)}
	add("zip: inflating pickle", hostileFile{content: deflatedZip(t, entry{"a/data.pkl", []byte("\x80\x02(" + many(1<<28, "N") + "1" + w + ".")}, data)})
	add("zip: inflating bytes", hostileFile{content: deflatedZip(t, entry{"a/data.pkl", []byte("\x80\x02B\x00\x00\x00\x08" + many(1<<27, "x") + "0" + w + ".")}, data), opens: true})
	add("zip: inflating storage", hostileFile{content: deflatedZip(t, entry{"a/data.pkl", pkl}, entry{"a/data/0", make([]byte, 1<<28)}), opens: true})
	var entries []entry
	for i := range 200_000 {
		entries = append(entries, entry{fmt.Sprintf("a/data/%d", i+1), nil})
	}
	crowd := zipOf(t, append(entries, entry{"a/data.pkl", pkl}, data)...)
	add("zip: many entries", hostileFile{content: crowd, header: 12 << 20, opens: true})
	for i := range 200_000 {
		entries = append(entries, entry{fmt.Sprintf("a/data/%d", i+200_001), nil})
	}
	add("zip: too many entries", hostileFile{content: zipOf(t, append(entries, entry{"a/data.pkl", pkl}, data)...), header: 24 << 20})
	add("zip: all of the directory is names", hostileFile{content: zipOf(t, longNames(900)...), header: 59 << 20})

	st := func(header string, data int64) hostileFile {
		content := append(binary.LittleEndian.AppendUint64(nil, uint64(len(header))), header...)
		return hostileFile{content: content, header: int64(len(header)), holes: data, as: "model.safetensors"}
	}
	add("safetensors: nested", st(many(50<<20, `{"a":`), 0))
	add("safetensors: nested lists", st(`{"a":{"x":`+many(90<<20, "["), 0))
	add("safetensors: spaces", hostileFile{content: st("{}"+many(99_000_000, " "), 0).content, header: 99_000_000, opens: true, as: "model.safetensors"})
	add("safetensors: one name", st(`{"`+many(99_000_000, "x")+`":1}`, 0))
	add("safetensors: escapes", st(`{"`+many(16_000_000, `\u0041`)+`":1}`, 0))
	add("safetensors: dimensions", st(`{"a":{"shape":[`+many(45_000_000, "1,")+`1]}}`, 0))
	add("safetensors: digits", st(`{"a":{"shape":[`+many(90_000_000, "1")+`]}}`, 0))
	add("safetensors: tensors", st("{"+numberedEntries(1_700_000, `"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}`)+"}", 0))
	most := st("{"+numberedEntries(safetensors.MaxTensors, `"%d":{"dtype":"U8","shape":[0,1,2],"data_offsets":[0,0]}`)+"}", 0)
	most.opens = true
	add("safetensors: as many as may be", most)
	add("safetensors: metadata", st(`{"__metadata__":{`+numberedEntries(7_000_000, `"%d":""`)+"}}", 0))
	add("safetensors: fields", st(`{"a":{`+numberedEntries(7_000_000, `"%d":[]`)+"}}", 0))
	index := `{"weight_map":{` + numberedEntries(4_000_000, `"%d":"b"`) + "}}"
	add("index", hostileFile{content: []byte(index), header: int64(len(index)), as: "model.safetensors.index.json"})
	index = `{"weight_map":{` + numberedEntries(3_000_000, `"%d":"b/%[1]d"`) + "}}"
	add("index: many files", hostileFile{content: []byte(index), header: int64(len(index)), as: "pytorch_model.bin.index.json"})
}

// numberedEntries joins n texts with commas.
func numberedEntries(n int, format string) string {
	var b strings.Builder
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, format, i)
	}
	return b.String()
}

// longNames are entries with names of 64 KB.
func longNames(n int) []entry {
	entries := make([]entry, n)
	for i := range entries {
		entries[i].name = fmt.Sprintf("%d/%s", i, strings.Repeat("x", 65_000))
	}
	return entries
}

func deflatedZip(t *testing.T, entries ...entry) []byte {
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, e := range entries {
		w, err := z.Create(e.name)
		if err == nil {
			_, err = w.Write(e.data)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// overlapping is a zip of which two entries have the same bytes.
func overlapping(t *testing.T) []byte {
	z := zipOf(t, entry{"a/data.pkl", []byte("\x80\x02" + pDict(pW) + ".")}, entry{"a/data/0", floats(1, 2)}, entry{"a/data/1", floats(3, 4)})
	last := bytes.LastIndex(z, []byte("PK\x01\x02"))
	before := bytes.LastIndex(z[:last], []byte("PK\x01\x02"))
	copy(z[last+42:last+46], z[before+42:before+46])
	return z
}

// otherLocalName changes an entry's name in its own header.
func otherLocalName(z []byte) []byte {
	i := bytes.Index(z, []byte("a/data.pkl"))
	z[i+2] = 'D'
	return z
}

// TestOddPaths opens what is no file.
func TestOddPaths(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "pipe.pt")
	if err := exec.Command("mkfifo", fifo).Run(); err != nil {
		t.Skipf("no mkfifo here: %v", err)
	}
	if err := os.Mkdir(filepath.Join(dir, "model.safetensors"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{fifo, dir, filepath.Join(dir, "model.safetensors")} {
		_, _, _, outcome := openInChild(t, path)
		if !strings.HasPrefix(outcome, "refused: ") {
			t.Errorf("%s: %s", path, outcome)
		}
	}
}

// wideMemo stores one value in n places.
func wideMemo(n int) string {
	var b strings.Builder
	b.WriteByte('N')
	for i := range n {
		b.Write([]byte{'r', byte(i), byte(i >> 8), byte(i >> 16), byte(i >> 24)})
	}
	b.WriteByte('0')
	return b.String()
}

// usedMemo fetches them.
func usedMemo(n int) string {
	var b strings.Builder
	for i := range n {
		b.Write([]byte{'j', byte(i), byte(i >> 8), byte(i >> 16), byte(i >> 24)})
	}
	return b.String()
}

// entries are keys and values of a dict.
func entries(n int) string {
	var b strings.Builder
	for i := range n {
		b.Write([]byte{'J', byte(i), byte(i >> 8), byte(i >> 16), byte(i >> 24), 'N'})
	}
	return b.String()
}

// otherTensors are entries of a dict with tensors over one storage, written as
// torch.save does.
func otherTensors(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "%sq\x01%s", pStr(fmt.Sprintf("layer.%d.weight", i)), pTensor("0", 2, []int{1, 2}, []int{2, 1}))
	}
	return b.String()
}

func otherClasses(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "ca\n%d\n0", i)
	}
	return b.String()
}
