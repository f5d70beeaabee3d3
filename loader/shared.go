package loader

import (
	"maps"
	"slices"
)

// addTies finds the names that a safetensors file's metadata keeps for tensors
// that were not written, since they are the same as another: its key is the name
// and its value is that of the tensor. Transformers and safetensors' own
// save_model write it.
func (c *Checkpoint) addTies() {
	for name, of := range c.metadata {
		if _, stored := c.index[name]; stored {
			continue
		}
		if i, ok := c.index[of]; ok {
			if c.ties == nil {
				c.ties = map[string]int{}
			}
			c.ties[name] = i
		}
	}
}

// Shared returns the groups of two or more names that stand for one storage: tied
// weights, tensors that view each other's elements, and names that a safetensors
// file's metadata ties to a tensor. Names are in stored order, those of metadata
// last. Lookup and the reading methods take them all; Tensors does not list those
// of metadata.
func (c *Checkpoint) Shared() [][]string {
	groups := map[*storage][]string{}
	var order []*storage
	add := func(t Tensor, name string) {
		s := t.source()
		if groups[s] == nil {
			order = append(order, s)
		}
		groups[s] = append(groups[s], name)
	}
	for _, t := range c.tensors {
		add(t, t.Name)
	}
	for _, name := range slices.Sorted(maps.Keys(c.ties)) {
		add(c.tensors[c.ties[name]], name)
	}
	var shared [][]string
	for _, s := range order {
		if len(groups[s]) > 1 {
			shared = append(shared, groups[s])
		}
	}
	return shared
}

// source returns the storage in the file that a tensor's elements come from.
func (t Tensor) source() *storage {
	if d, ok := t.storage.data.(*dequantized); ok {
		return d.codes.storage
	}
	return t.storage
}
