package loader

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// scanBytes scans content as a file.
func scanBytes(t testing.TB, content []byte) ScannedFile {
	t.Helper()
	s, err := Scan(context.Background(), write(t, "model.pt", content))
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Files) != 1 {
		t.Fatalf("%d files", len(s.Files))
	}
	return s.Files[0]
}

func summary(f ScannedFile) []string {
	var all []string
	for _, g := range f.Globals {
		all = append(all, string(g.Class)+" "+g.Name)
	}
	return all
}

// calls are all ways to name a function and to call it with an argument, of
// every protocol, in a pickle of a list.
func calls(module, name, argument string) map[string]string {
	global := pGlobal(module, name)
	short := func(s string) string { return "\x8c" + string(rune(len(s))) + s }
	arg := pStr(argument)
	return map[string]string{
		"REDUCE":                global + arg + "\x85R",
		"INST":                  "(" + arg + "i" + module + "\n" + name + "\n",
		"OBJ":                   "(" + global + arg + "o",
		"NEWOBJ":                global + arg + "\x85\x81",
		"NEWOBJ_EX":             global + arg + "\x85}\x92",
		"BUILD":                 global + ")\x81}" + pStr("__setstate__") + global + "sb" + arg + "b",
		"STACK_GLOBAL":          short(module) + short(name) + "\x93" + arg + "\x85R",
		"through the memo":      short(module) + "\x94" + short(name) + "\x940h\x00h\x01\x93\x940h\x02" + arg + "\x85R" + "q\x090h\x09",
		"through DUP":           global + "2" + arg + "\x85Rq\x050q\x060h\x05",
		"marks around":          "((" + global + "1" + global + arg + "\x85Rt",
		"popped afterwards":     global + arg + "\x85R0N",
		"protocol 0 strings":    "S'" + module + "'\nV" + name + "\n\x93S'" + argument + "'\n\x85R",
		"escaped, hexadecimal":  "S'" + escapeAll(module, `\x%02x`) + "'\nS\"" + escapeAll(name, `\%03o`) + "\"\n\x93" + arg + "\x85R",
		"escaped, unicode":      "V" + escapeAll(module, `\u%04x`) + "\nV" + escapeAll(name, `\U%08x`) + "\n\x93" + arg + "\x85R",
		"PUT and GET":           "V" + module + "\np77\n0V" + name + "\np78\n0g77\ng78\n\x93" + arg + "\x85R",
		"LONG_BINPUT":           "X" + pStr(module)[1:] + "r\x00\x01\x00\x00" + pStr(name) + "\x93" + arg + "\x85R",
		"as a dict's value":     "}" + pStr("x") + global + arg + "\x85Rs",
		"as a key":              "}" + global + arg + "\x85RNs",
		"in a persistent id":    "(" + pStr("module") + global + arg + "\x85RNtQ",
		"as its own argument":   global + global + arg + "\x85R\x85R",
		"in frames":             "\x95" + string(rune(len(global))) + "\x00\x00\x00\x00\x00\x00\x00" + global + arg + "\x85R",
		"the result is called":  global + ")R" + arg + "\x85R",
		"appended to and built": global + ")R" + arg + "a}b",
	}
}

func escapeAll(s, format string) string {
	var b strings.Builder
	for _, c := range s {
		fmt.Fprintf(&b, format, c)
	}
	return b.String()
}

func TestScanFindsCallsUnderEveryOpcode(t *testing.T) {
	marker := filepath.Join(t.TempDir(), "was-run")
	for _, f := range [][3]string{
		{"os", "system", "touch " + marker},
		{"posix", "system", "touch " + marker},
		{"builtins", "eval", "open('" + marker + "', 'w')"},
		{"__builtin__", "exec", "open('" + marker + "', 'w')"},
	} {
		for how, body := range calls(f[0], f[1], f[2]) {
			pickle := "\x80\x04](" + body + "e."
			name := canonical(f[0], f[1])
			for container, content := range map[string][]byte{
				"zip": torchZip(t, pickle), "legacy": torchLegacy(pickle), "raw": []byte(pickle), "cut": []byte(pickle[:len(pickle)-1]),
			} {
				got := scanBytes(t, content)
				if want := []string{"dangerous " + name}; !cmp.Equal(summary(got), want) || (got.Problem != "") != (container == "cut") {
					t.Errorf("%s, %s, %s: %v, problem %q", name, how, container, summary(got), got.Problem)
				}
				if container == "zip" || container == "legacy" { // opens, or is refused; runs nothing
					if err := openFuzzed(t, content); err == nil {
						c := mustOpen(t, content)
						if !cmp.Equal(c.UnknownClasses(), []string{name}) {
							t.Errorf("%s, %s, %s: unknown classes %v", name, how, container, c.UnknownClasses())
						}
					}
				}
			}
		}
	}
	if _, err := os.Stat(marker); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a pickle was run: %v", err)
	}
}

func TestClassify(t *testing.T) {
	for name, want := range map[string]NameClass{
		"torch._utils _rebuild_tensor_v2":   Known,
		"torch FloatStorage":                Known,
		"torch bfloat16":                    Known,
		"collections OrderedDict":           Known,
		"__builtin__ set":                   Known,
		"pathlib PosixPath":                 Known,
		"torch.nn.modules.linear Linear":    Known,
		"__torch__.my.Net Net":              Known,
		"my.config Config":                  Unknown,
		"__main__ Net":                      Unknown,
		"builtins ValueError":               Unknown,
		"functools partial":                 Unknown,
		"torch.optim.adam Adam":             Unknown,
		"test Net":                          Unknown,
		"os system":                         Dangerous,
		"nt system":                         Dangerous,
		"commands getoutput":                Dangerous,
		"subprocess Popen":                  Dangerous,
		"sys modules":                       Dangerous,
		"builtins getattr":                  Dangerous,
		"builtins open":                     Dangerous,
		"__builtin__ apply":                 Dangerous,
		"builtins __import__":               Dangerous,
		"operator attrgetter":               Dangerous,
		"functools reduce":                  Dangerous,
		"types CodeType":                    Dangerous,
		"runpy run_path":                    Dangerous,
		"socket socket":                     Dangerous,
		"shutil rmtree":                     Dangerous,
		"importlib import_module":           Dangerous,
		"pty spawn":                         Dangerous,
		"code InteractiveInterpreter":       Dangerous,
		"webbrowser open":                   Dangerous,
		"ctypes CDLL":                       Dangerous,
		"_pickle loads":                     Dangerous,
		"cPickle loads":                     Dangerous,
		"pathlib Path.unlink":               Dangerous,
		"torch load":                        Dangerous,
		"torch.storage _load_from_bytes":    Dangerous,
		"torch.hub load":                    Dangerous,
		"torch.serialization os.system":     Dangerous,
		"torch.nn.modules.module os.system": Dangerous,
		"torch.nn.modules.module Module.load.__func__":        Dangerous,
		"torch.nn.modules.linear Linear.__init__.__globals__": Dangerous,
		"random _os.system":                      Dangerous,
		"numpy.testing._private.utils runstring": Dangerous,
		"torch.nn.modules.module warnings.sys":   Dangerous,
	} {
		module, member, _ := strings.Cut(name, " ")
		if got := classify(module, member); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
}

func TestScanReport(t *testing.T) {
	body := pDict(pW, pStr("a"), pCall(pGlobal("my", "Config")), pStr("b"), pCall(pGlobal("my", "Config")), pStr("c"), pCall(pGlobal("os", "system"), pStr("x")))
	got := scanBytes(t, torchZip(t, pickled(body), []float32{1, 2}))
	if diff := cmp.Diff([]string{"dangerous os.system", "unknown my.Config", "known torch.FloatStorage", "known torch._utils._rebuild_tensor_v2"}, summary(got)); diff != "" {
		t.Error(diff)
	}
	if g := got.Globals[1]; got.Pickles != 1 || g.Count != 2 || g.Pickle != "archive/data.pkl" || pickled(body)[g.Offset:][:4] != "cmy\n" {
		t.Errorf("%d pickles, %+v", got.Pickles, g)
	}
	for name, c := range map[string]struct {
		pickle string
		want   []string
	}{
		"computed name":       {"X\x02\x00\x00\x00os" + pCall(pGlobal("builtins", "str"), pStr("system")) + "\x93", []string{"dangerous (computed by the pickle)", "known builtins.str"}},
		"extension":           {"\x82\x01)R", []string{"dangerous (computed by the pickle)"}},
		"wide extension":      {"\x84\x01\x00\x00\x00)R", []string{"dangerous (computed by the pickle)"}},
		"textual persistence": {"Pid\n0\x970" + pGlobal("a", "b"), []string{"unknown a.b"}},
		"terminal escapes":    {pGlobal("a\x1b[2J", "b"), []string{"unknown a?[2J.b"}},
	} {
		if got := scanBytes(t, []byte(pickled(c.pickle))); !cmp.Equal(summary(got), c.want) || got.Problem != "" {
			t.Errorf("%s: %v, problem %q", name, summary(got), got.Problem)
		}
	}
}

func TestScanContainers(t *testing.T) {
	evil := pickled(pCall(pGlobal("os", "system"), pStr("x")))
	good := pickled(pDict(pW))
	var old bytes.Buffer
	w := tar.NewWriter(&old)
	for name, content := range map[string]string{"sys_info": pickled("}"), "pickle": evil, "storages": "\x00\x01\x02"} {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(content))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	protocol1 := "L119547037146038801333356L\n.I1001\n.}." + "cos\nsystem\n(S'x'\ntR." + "]."
	// A file that is safetensors by its first bytes, and a pickle that skips them.
	header := `X` + "\x40\x00\x00\x00\x00\x00\x00" + `{}`
	header += strings.Repeat(" ", 'X'+0x4000-2)
	both := []byte(header)
	both = append(both[:5+0x40], evil...)
	for name, content := range map[string][]byte{
		"tar": old.Bytes(), "legacy of protocol 1": []byte(protocol1), "second pickle": []byte(good + evil),
		"second data.pkl":       zipOf(t, entry{"a/data.pkl", []byte(good)}, entry{"b/data.pkl", []byte(evil)}),
		"constants":             zipOf(t, entry{"a/data.pkl", []byte(good)}, entry{"a/constants.pkl", []byte(evil)}),
		"archive in an archive": zipOf(t, entry{"model.pt", zipOf(t, entry{"a/data.pkl", []byte(evil)})}),
		"duplicate data.pkl":    zipOf(t, entry{"a/data.pkl", []byte(good)}, entry{"a/data.pkl", []byte(evil)}),
		"looks like the others": both,
	} {
		if got := scanBytes(t, content); len(got.Globals) == 0 || got.Globals[0].Name != "os.system" {
			t.Errorf("%s: %v, problem %q", name, summary(got), got.Problem)
		}
	}
	for name, content := range samples(t) {
		got := scanBytes(t, content)
		if want := map[string]int{"zip": 1, "legacy": 5, "safetensors": 0}[name]; got.Pickles != want || got.Problem != "" {
			t.Errorf("%s: %d pickles, problem %q", name, got.Pickles, got.Problem)
		}
	}
	if got := scanBytes(t, deflatedZip(t, entry{"model.pt", zipOf(t, entry{"a/data.pkl", []byte(evil)})})); got.Problem == "" {
		t.Error("a compressed archive in an archive is no problem")
	}
	if got := scanBytes(t, encrypted(zipOf(t, entry{"a/data.pkl", []byte(good)}))); got.Problem == "" {
		t.Error("an encrypted entry is no problem")
	}
}

func TestScanFolder(t *testing.T) {
	dir := t.TempDir()
	evil := pickled(pCall(pGlobal("os", "system"), pStr("x")))
	for name, content := range map[string]string{
		"a/model.bin": pickled("}"), "b.weights": evil, "README.md": "class A:\n  pass\n", "config.json": "{}", "empty": "",
		"cut.pt": "\x80\x02}", "note.pkl": "no pickle", "sub/x/y.data": "\x01\x02",
	} {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, err := Scan(context.Background(), dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range s.Files {
		got = append(got, filepath.Base(f.Path)+map[bool]string{true: " problem"}[f.Problem != ""])
	}
	if diff := cmp.Diff([]string{"model.bin", "b.weights", "cut.pt problem", "note.pkl problem"}, got); diff != "" {
		t.Error(diff)
	}
	if s.Count(Dangerous) != 1 {
		t.Errorf("%d dangerous names", s.Count(Dangerous))
	}
	if _, err := Scan(context.Background(), filepath.Join(dir, "absent")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an absent file: %v", err)
	}
	cancelled, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Scan(cancelled, dir); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestScanSharedFiles holds that real checkpoints name nothing dangerous.
func TestScanSharedFiles(t *testing.T) {
	s, err := Scan(context.Background(), shared(t, "torture"))
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Files) < 130 || s.Count(Dangerous) != 0 || s.Count(Unknown) != 0 {
		t.Errorf("%d files, %d dangerous and %d unknown names", len(s.Files), s.Count(Dangerous), s.Count(Unknown))
	}
	for _, f := range s.Files {
		if f.Problem != "" && !strings.HasPrefix(filepath.Base(f.Path), "bad_") {
			t.Errorf("%s: %s", f.Path, f.Problem)
		}
	}
}

func FuzzScan(f *testing.F) {
	for _, content := range samples(f) {
		f.Add(content)
	}
	for _, body := range calls("os", "system", "x") {
		f.Add([]byte("\x80\x04](" + body + "e."))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		s := scanner{globals: map[string]*Global{}}
		_, err := s.scan(bytes.NewReader(content), int64(len(content)))
		if err != nil {
			if _, ok := errors.AsType[*FormatError](err); !ok {
				t.Fatalf("error %v is not a *FormatError", err)
			}
		}
		// What a checkpoint's pickle calls, the scan has named.
		c := &Checkpoint{index: map[string]int{}}
		if c.openReader(bytes.NewReader(content), int64(len(content)), false) == nil && c.format != Safetensors {
			for _, name := range c.unknown {
				if s.globals[name] == nil {
					t.Fatalf("the scan missed %q", name)
				}
			}
		}
	})
}
