package main

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/loader"
	"github.com/fettle-dev/fettle/model"
)

// shape is a Llama with a tied head, and a batch for it.
type shape struct {
	name                                      string
	hidden, inner, heads, kvHeads, vocabulary int
	sequences, length                         int
}

const blocks = 4

func (s shape) tokens() int { return s.sequences * s.length }

// tensor names a part of the file of weights.
type tensor struct {
	Name  string `json:"name"`
	Shape []int  `json:"shape"`
}

// network is a shape's graph with random weights and token ids.
type network struct {
	shape     shape
	config    []byte // as config.json has it
	order     []tensor
	weights   map[string][]float32
	graph     *model.Graph
	sequences [][]uint32
}

func (s shape) tensors() []tensor {
	kv := s.hidden / s.heads * s.kvHeads
	all := []tensor{{"model.embed_tokens.weight", []int{s.vocabulary, s.hidden}}, {"model.norm.weight", []int{s.hidden}}}
	for i := range blocks {
		add := func(name string, shape ...int) {
			all = append(all, tensor{fmt.Sprintf("model.layers.%d.%s.weight", i, name), shape})
		}
		add("input_layernorm", s.hidden)
		add("self_attn.q_proj", s.hidden, s.hidden)
		add("self_attn.k_proj", kv, s.hidden)
		add("self_attn.v_proj", kv, s.hidden)
		add("self_attn.o_proj", s.hidden, s.hidden)
		add("post_attention_layernorm", s.hidden)
		add("mlp.gate_proj", s.inner, s.hidden)
		add("mlp.up_proj", s.inner, s.hidden)
		add("mlp.down_proj", s.hidden, s.inner)
	}
	return all
}

func newNetwork(s shape) (*network, error) {
	n := &network{shape: s, order: s.tensors(), weights: make(map[string][]float32)}
	var err error
	if n.config, err = json.Marshal(map[string]any{
		"model_type": "llama", "hidden_size": s.hidden, "intermediate_size": s.inner, "num_hidden_layers": blocks,
		"num_attention_heads": s.heads, "num_key_value_heads": s.kvHeads, "vocab_size": s.vocabulary,
		"max_position_embeddings": s.length, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "tie_word_embeddings": true,
	}); err != nil {
		return nil, err
	}
	var tensors []loader.Tensor
	for i, t := range n.order {
		tensors = append(tensors, loader.Tensor{Name: t.Name, DType: dtype.F32, Shape: t.Shape})
		n.weights[t.Name] = random(uint64(i), t.Shape)
	}
	rng := rand.New(rand.NewPCG(2, 0))
	for range s.sequences {
		ids := make([]uint32, s.length)
		for i := range ids {
			ids[i] = rng.Uint32N(uint32(s.vocabulary))
		}
		n.sequences = append(n.sequences, ids)
	}
	n.graph, err = model.Build(tensors, model.Options{Config: n.config})
	return n, err
}

// random returns a matrix of variance 1/columns, or a vector of numbers near 1.
func random(seed uint64, shape []int) []float32 {
	rng := rand.New(rand.NewPCG(1, seed))
	middle, width := float32(1), float32(.1)
	size := shape[0]
	if len(shape) == 2 {
		middle, width = 0, float32(math.Sqrt(3/float64(shape[1])))
		size *= shape[1]
	}
	w := make([]float32, size)
	for i := range w {
		w[i] = middle + width*(2*rng.Float32()-1)
	}
	return w
}

// flops returns the operations of a pass's products, of attention only those
// that the causal mask leaves.
func (n *network) flops(head bool) float64 {
	g := n.graph
	var sum float64
	for i := range g.Ops {
		o := &g.Ops[i]
		switch {
		case o.Kind == model.Linear && (head || o.Output != g.Output):
			sum += 2 * float64(n.shape.tokens()) * float64(o.Outputs) * float64(g.Values[o.Inputs[0]].Shape[0])
		case o.Kind == model.Attend:
			t := float64(n.shape.length)
			pairs := float64(n.shape.sequences) * t * (t + 1) / 2
			sum += 4 * pairs * float64(o.Attention.Heads*o.Attention.HeadDim)
		}
	}
	return sum
}

// write writes all weights in order as raw float32.
func (n *network) write(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	w := bufio.NewWriterSize(f, 1<<20)
	for _, t := range n.order {
		for _, v := range n.weights[t.Name] {
			if _, err := w.Write(binary.LittleEndian.AppendUint32(w.AvailableBuffer(), math.Float32bits(v))); err != nil {
				return err
			}
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return f.Close()
}

func readFloats(path string) ([]float32, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	values := make([]float32, len(raw)/4)
	for i := range values {
		values[i] = math.Float32frombits(binary.LittleEndian.Uint32(raw[4*i:]))
	}
	return values, nil
}
