package model

import (
	"strings"
)

// A decoder from which blocks' parts have been taken away unevenly cannot be
// described by the keys of its family, which are the same for all blocks. Its
// config.json has shapesKey, one BlockShape for each block, and a model_type that
// begins with ownPrefix: other readers then refuse the folder, where under the
// plain name some of them would fill what is missing with random numbers.
const (
	shapesKey = "fettle_blocks"
	ownPrefix = "fettle-"
)

// BlockShape says how large the parts of a decoder's block are.
type BlockShape struct {
	Heads    int `json:"heads"`    // of queries; 0: the block has no attention
	KVHeads  int `json:"kv_heads"` // of keys and values
	Channels int `json:"channels"` // of the MLP between its layers; 0: the block has no MLP
}

func (s BlockShape) valid() bool {
	heads := s.Heads == 0 && s.KVHeads == 0 || s.Heads > 0 && s.KVHeads > 0 && s.Heads <= maxCount && s.Heads%s.KVHeads == 0
	return heads && s.Channels >= 0 && s.Channels <= maxCount
}

// blockShapes returns the shape of each block: that of the family's keys, unless
// the config has one for each.
func (d *decoder) blockShapes(all BlockShape) func(i int) BlockShape {
	c := d.c
	own := strings.HasPrefix(get(c, "model_type", ""), ownPrefix)
	shapes := get[[]BlockShape](c, shapesKey, nil)
	switch {
	case shapes == nil && own:
		c.fail(shapesKey, "is missing, though the model_type says that blocks differ")
	case shapes == nil:
		return func(int) BlockShape { return all }
	case !own:
		c.fail(shapesKey, "stands beside a model_type that does not begin with %q", ownPrefix)
	case len(shapes) != d.layers:
		c.fail(shapesKey, "has %d entries for %d blocks", len(shapes), d.layers)
	}
	for i, s := range shapes {
		if !s.valid() {
			c.fail(shapesKey, "block %d cannot have %d heads to %d and %d channels", i, s.Heads, s.KVHeads, s.Channels)
		}
	}
	return func(i int) BlockShape { return shapes[i] } // there are as many as blocks, or no block is built
}
