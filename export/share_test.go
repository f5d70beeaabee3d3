package export

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/layer"
)

// TestShares: the shares of tensors add up to no less than the exact size, and to
// little more, over random models, formats, masks, factors and shards.
func TestShares(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 12))
	types := []dtype.DType{dtype.F32, dtype.F16, dtype.BF16}
	for round := range 60 {
		var tensors []tensor
		var names []string
		for i := range 1 + rng.IntN(12) {
			name := fmt.Sprintf("layers.%d.self.weight", i)
			tensors = append(tensors, floats(rng, name, types[rng.IntN(3)], 16*(1+rng.IntN(9)), 32*(1+rng.IntN(4))),
				floats(rng, fmt.Sprintf("layers.%d.self.bias", i), dtype.F32, 16))
			names = append(names, name)
		}
		ckpt := checkpoint(t, tensors, map[string]string{"who": `"quoted"`})
		in := Input{Checkpoint: ckpt, Specs: map[string]Spec{}}
		if round%3 == 0 {
			in.ShardSize = 30_000
		}
		for _, name := range names {
			if w, _ := ckpt.Lookup(name); rng.IntN(4) > 0 {
				in.Specs[name] = randomSpec(rng, name, w.Shape, w.DType)
			}
		}
		exact, err := CompressedTensorsSize(in)
		if err != nil {
			t.Fatal(err)
		}
		for _, limit := range []int64{exact, 2 * exact, 100 * exact} {
			shares := Shares{Checkpoint: ckpt, ShardSize: in.ShardSize, Limit: limit}
			sum, err := shares.Frame()
			if err != nil {
				t.Fatal(err)
			}
			parts := 0
			for _, x := range ckpt.Tensors() {
				spec, ok := in.Specs[x.Name]
				n, err := shares.Kept(x)
				parts++
				if ok {
					n, err = shares.Compressed(spec)
					parts += len(spec.tensors(nil)) + 3
				}
				if err != nil {
					t.Fatal(err)
				}
				sum += n
			}
			// Six digits less at most in each of two offsets, metadata with frames of their
			// own, and frames of shards that are not there.
			slack := int64(300 + 20*parts)
			if in.ShardSize > 0 {
				slack += (1 + 2*limit/in.ShardSize) * int64(300+80*len(in.Specs))
			}
			if sum < exact || sum > exact+slack {
				t.Errorf("limit %d: shares of %d tensors add up to %d bytes, the file has %d", limit, parts, sum, exact)
			}
			if limit == exact && in.ShardSize == 0 && sum > exact+int64(220+4*parts+90*len(in.Specs)) {
				t.Errorf("shares of %d tensors are %d bytes above the file's", parts, sum-exact)
			}
		}
	}
}

// randomSpec is a spec of any kind that a matrix of whole groups can have.
func randomSpec(rng *rand.Rand, name string, shape []int, d dtype.DType) Spec {
	s := Spec{Name: name, Shape: shape, Rows: shape[0], Cols: shape[1]}
	switch rng.IntN(4) {
	case 0:
		s.ValueType = d
		s.Pruned = Sparsity{Survivors: 1 + rng.IntN(s.Rows*s.Cols)}
		s = s.Smallest()
	case 1:
		s.ValueType = d
		s.Pruned = Sparsity{Survivors: s.Rows * s.Cols / 2, Keep: 2, Of: 4}
		s = s.Smallest()
	case 2:
		s.Format, s.Bits, s.Granularity, s.GroupSize, s.ScaleType = layer.NVFP4, 4, layer.PerGroup, 16, dtype.F8E4M3
		s.Symmetric = true
	default:
		s.Format, s.Bits, s.Granularity, s.ScaleType = layer.Integer, 2+rng.IntN(7), layer.PerChannel, dtype.F32
		s.Symmetric = rng.IntN(2) == 0
		if rng.IntN(2) == 0 {
			s.Granularity, s.GroupSize = layer.PerGroup, 32
		}
		if rng.IntN(3) == 0 {
			s.LowRank = LowRank{Rank: 1 + rng.IntN(8), Type: dtype.F16}
		}
	}
	return s
}
