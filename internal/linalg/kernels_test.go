package linalg

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"testing"
)

// kernelSets are the set in use and those that a machine with it has too.
func kernelSets() map[string]kernelSet {
	all := map[string]kernelSet{"generic": generic, "avx2": avx2, "avx512": avx512}
	maps.DeleteFunc(all, func(_ string, k kernelSet) bool { return k > kernels })
	return all
}

// with runs f with the kernels of a set.
func with(set kernelSet, f func()) {
	defer func(k kernelSet) { kernels = k }(kernels)
	kernels = set
	f()
}

const canary = 12345.678

// slot returns n numbers at an odd place among canaries, and a check of those.
func slot(rng *rand.Rand, n int) (x []float64, intact func() bool) {
	offset := 1 + rng.IntN(9)
	buffer := slices.Repeat([]float64{canary}, offset+n+9)
	x = buffer[offset:][:n:n]
	for i := range x {
		x[i] = rng.NormFloat64()
	}
	return x, func() bool {
		for i, v := range buffer {
			if (i < offset || i >= offset+n) && v != canary {
				return false
			}
		}
		return true
	}
}

// sameBytes also tells zeros' signs apart, and takes all NaN for one.
func sameBytes(a, b []float64) bool {
	return slices.EqualFunc(a, b, func(x, y float64) bool {
		return math.Float64bits(x) == math.Float64bits(y) || x != x && y != y
	})
}

// close compares with a bound for sums of n terms of about 1, treating what is
// not finite as IEEE does.
func closeTo(a, b []float64, n int) bool {
	return slices.EqualFunc(a, b, func(x, y float64) bool {
		if math.IsNaN(x) || math.IsInf(x, 0) {
			return x == y || x != x && y != y
		}
		return math.Abs(x-y) <= 0x1p-50*float64(n+4)*(1+math.Abs(y))
	})
}

// vectorKernels returns what the kernels compute from random vectors of length n,
// with one element of x special.
func vectorKernels(t *testing.T, seed uint64, n int, special float64) []float64 {
	rng := rand.New(rand.NewPCG(seed, uint64(n)))
	var x, y, a, b []float64
	var checks []func() bool
	for _, v := range []*[]float64{&x, &y, &a, &b} {
		var check func() bool
		*v, check = slot(rng, n)
		checks = append(checks, check)
	}
	if n > 0 && special != 0 {
		x[rng.IntN(n)] = special
	}
	out := []float64{dot(x, y)}
	before := slices.Concat(x, a, b)
	axpy(0.7, x, y)
	out = append(out, y...)
	da, db := symv(a, b, x, y, 0.3, -1.1)
	out = append(append(out, da, db), y...)
	if !sameBytes(before, slices.Concat(x, a, b)) {
		t.Errorf("n=%d: an input was changed", n)
	}
	for _, intact := range checks {
		if !intact() {
			t.Errorf("n=%d: wrote beside a vector", n)
		}
	}
	return out
}

func checkVectorKernels(t *testing.T, seed uint64, n int, special float64) {
	t.Helper()
	results := map[string][]float64{}
	for name, set := range kernelSets() {
		with(set, func() { results[name] = vectorKernels(t, seed, n, special) })
	}
	for name, got := range results {
		if !closeTo(got, results["generic"], n) {
			t.Errorf("n=%d, %g: %s differs from the plain twin", n, special, name)
		}
		if avx := results["avx512"]; name == "avx2" && avx != nil && !sameBytes(got, avx) {
			t.Errorf("n=%d, %g: AVX2 and AVX-512 differ", n, special)
		}
	}
}

func TestVectorKernels(t *testing.T) {
	for n := range 80 {
		for _, special := range []float64{0, math.NaN(), math.Inf(1), math.Inf(-1), math.Copysign(0, -1)} {
			checkVectorKernels(t, 1, n, special)
		}
	}
	rng := rand.New(rand.NewPCG(2, 2))
	for range 100 {
		checkVectorKernels(t, rng.Uint64(), rng.IntN(700), 0)
	}
}

func FuzzVectorKernels(f *testing.F) {
	f.Add(uint64(1), uint16(33), 0.0)
	f.Add(uint64(2), uint16(15), math.Inf(1))
	f.Fuzz(func(t *testing.T, seed uint64, n uint16, special float64) {
		if math.Abs(special) > 1e3 && !math.IsInf(special, 0) {
			special = 0 // products that overflow in one order only
		}
		checkVectorKernels(t, seed, int(n%1000), special)
	})
}

func TestForwardKernel(t *testing.T) {
	for n := range block + 1 {
		rng := rand.New(rand.NewPCG(3, uint64(n)))
		var l [block * block]float64
		var inverse [block]float64
		var start [block * sides]float64
		for i := range l {
			l[i] = rng.NormFloat64() / 8
		}
		for i := range inverse {
			inverse[i] = 1 / (1 + rng.Float64())
		}
		for i := range start {
			start[i] = rng.NormFloat64()
		}
		if n > 3 {
			start[3*sides+5] = math.NaN()
			start[2*sides+6] = math.Inf(1)
		}
		results := map[string][]float64{}
		for name, set := range kernelSets() {
			x := start
			with(set, func() { forward(n, &l, &inverse, &x) })
			results[name] = x[:]
			if !sameBytes(x[n*sides:], start[n*sides:]) {
				t.Errorf("n=%d: %s writes below the last row", n, name)
			}
			if !closeTo(results[name], results["generic"], n) && results["generic"] != nil {
				t.Errorf("n=%d: %s differs from the plain twin", n, name)
			}
		}
		if results["avx512"] != nil && !sameBytes(results["avx2"], results["avx512"]) {
			t.Errorf("n=%d: AVX2 and AVX-512 differ", n)
		}
	}
}

// digestVariable makes the test's own process print a hash of all results.
const digestVariable = "FETTLE_LINALG_DIGEST"

// TestSameBytesForAnyKernels runs every factorization in processes that are
// made to take one instruction set, products included.
func TestSameBytesForAnyKernels(t *testing.T) {
	if os.Getenv(digestVariable) != "" {
		hash := sha256.New()
		for _, v := range allResults(t, nil) {
			_ = binary.Write(hash, binary.LittleEndian, v)
		}
		_, _ = fmt.Fprintf(os.Stdout, "digest %x\n", hash.Sum(nil))
		return
	}
	if _, ok := kernelSets()["avx512"]; !ok {
		t.Skip("this machine has no AVX-512 to compare AVX2 with")
	}
	run := func(set string) string {
		c := exec.Command(os.Args[0], "-test.run", "^TestSameBytesForAnyKernels$")
		c.Env = append(os.Environ(), "FETTLE_KERNELS="+set, digestVariable+"=1")
		out, err := c.Output()
		if err != nil {
			t.Fatalf("%s: %v\n%s", set, err, out)
		}
		var digest string
		if _, err := fmt.Sscanf(string(out), "digest %s", &digest); err != nil {
			t.Fatalf("%s: %v in %q", set, err, out)
		}
		return digest
	}
	if run("avx2") != run("avx512") {
		t.Error("AVX2 and AVX-512 give other bytes")
	}
	run("generic") // must work; it may round otherwise
}
