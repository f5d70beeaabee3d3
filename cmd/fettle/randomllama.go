package main

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"github.com/fettle-dev/fettle/export"
	"github.com/fettle-dev/fettle/internal/atomicfile"
	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/internal/safetensors"
	"github.com/fettle-dev/fettle/pipeline"
)

// randomLlamaCommand writes a Llama of random weights and token ids to go with
// it, to measure time and memory at sizes of which no trained model is at hand.
// It is hidden from the help: what it makes says nothing sensible.
func randomLlamaCommand() *cli.Command {
	return &cli.Command{
		Name: "random-llama", Hidden: true, ArgsUsage: "FOLDER",
		Usage: "write a Llama of random weights (by default 1.1B parameters in bfloat16) and ids.u16 to calibrate it with",
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "hidden", Value: 2048}, &cli.IntFlag{Name: "intermediate", Value: 5632},
			&cli.IntFlag{Name: "layers", Value: 22}, &cli.IntFlag{Name: "heads", Value: 32},
			&cli.IntFlag{Name: "kv-heads", Value: 4}, &cli.IntFlag{Name: "vocabulary", Value: 32000},
			&cli.IntFlag{Name: "ids", Value: 16 * 512, Usage: "token ids to write"},
		},
		Action: func(c *cli.Context) error {
			dir, err := oneArgument(c, "FOLDER")
			if err != nil {
				return err
			}
			m := randomLlama{
				Architectures: []string{"LlamaForCausalLM"}, ModelType: "llama", HiddenAct: "silu", DType: "bfloat16",
				Hidden: c.Int("hidden"), Intermediate: c.Int("intermediate"), Layers: c.Int("layers"),
				Heads: c.Int("heads"), KVHeads: c.Int("kv-heads"), Vocabulary: c.Int("vocabulary"),
				Positions: 2048, Eps: 1e-5, Theta: 10000,
			}
			return m.write(dir, c.Int("ids"))
		},
	}
}

// randomLlama is the model's config.json.
type randomLlama struct {
	Architectures []string `json:"architectures"`
	ModelType     string   `json:"model_type"`
	HiddenAct     string   `json:"hidden_act"`
	DType         string   `json:"torch_dtype"`
	Hidden        int      `json:"hidden_size"`
	Intermediate  int      `json:"intermediate_size"`
	Layers        int      `json:"num_hidden_layers"`
	Heads         int      `json:"num_attention_heads"`
	KVHeads       int      `json:"num_key_value_heads"`
	Vocabulary    int      `json:"vocab_size"`
	Positions     int      `json:"max_position_embeddings"`
	Eps           float64  `json:"rms_norm_eps"`
	Theta         float64  `json:"rope_theta"`
	Tied          bool     `json:"tie_word_embeddings"`
}

func (m randomLlama) write(dir string, ids int) error {
	if min(m.Hidden, m.Intermediate, m.Layers, m.Heads, m.KVHeads, m.Vocabulary) < 1 || m.Hidden%m.Heads != 0 || m.Heads%m.KVHeads != 0 || m.Vocabulary > 1<<16 {
		return usagef("sizes must be positive, heads divide hidden, kv-heads divide heads, and the vocabulary have at most %d ids", 1<<16)
	}
	folder, err := atomicfile.NewFolder(dir)
	if err != nil {
		return &pipeline.OutputError{Path: dir, Err: err}
	}
	defer func() { _ = folder.Discard() }() // nothing to do once it is committed
	for name, write := range map[string]func(io.Writer) error{
		export.ModelName: func(w io.Writer) error {
			return safetensors.Write(w, m.tensors(), map[string]string{"format": "pt"})
		},
		export.ConfigName: func(w io.Writer) error { return json.NewEncoder(w).Encode(m) },
		"ids.u16":         func(w io.Writer) error { return m.writeIDs(w, ids) },
	} {
		err := atomicfile.Write(filepath.Join(folder.Temp, name), func(w io.Writer) error {
			b := bufio.NewWriterSize(w, 1<<20)
			if err := write(b); err != nil {
				return err
			}
			return b.Flush()
		})
		if err != nil {
			return err
		}
	}
	return folder.Commit()
}

// tensors lists the weights: normal, scaled so that each layer keeps the size
// of what it reads, norms one.
func (m randomLlama) tensors() []safetensors.Source {
	var list []safetensors.Source
	add := func(name string, shape ...int) {
		seed := uint64(len(list))
		list = append(list, safetensors.Source{Name: name, DType: dtype.BF16, Shape: shape, Write: func(w io.Writer) error {
			return writeRandom(w, seed, shape)
		}})
	}
	kv := m.Hidden / m.Heads * m.KVHeads
	add("model.embed_tokens.weight", m.Vocabulary, m.Hidden)
	for i := range m.Layers {
		block := fmt.Sprintf("model.layers.%d.", i)
		add(block+"input_layernorm.weight", m.Hidden)
		add(block+"self_attn.q_proj.weight", m.Hidden, m.Hidden)
		add(block+"self_attn.k_proj.weight", kv, m.Hidden)
		add(block+"self_attn.v_proj.weight", kv, m.Hidden)
		add(block+"self_attn.o_proj.weight", m.Hidden, m.Hidden)
		add(block+"post_attention_layernorm.weight", m.Hidden)
		add(block+"mlp.gate_proj.weight", m.Intermediate, m.Hidden)
		add(block+"mlp.up_proj.weight", m.Intermediate, m.Hidden)
		add(block+"mlp.down_proj.weight", m.Hidden, m.Intermediate)
	}
	add("model.norm.weight", m.Hidden)
	add("lm_head.weight", m.Vocabulary, m.Hidden)
	return list
}

func writeRandom(w io.Writer, seed uint64, shape []int) error {
	r := rand.New(rand.NewPCG(seed, 1))
	rows, deviation := 1, 0.0
	if len(shape) == 2 {
		rows, deviation = shape[0], 1/math.Sqrt(float64(shape[1]))
	}
	values := make([]float32, shape[len(shape)-1])
	raw := make([]byte, 2*len(values))
	for range rows {
		for i := range values {
			values[i] = 1
			if deviation > 0 {
				values[i] = float32(deviation * r.NormFloat64())
			}
		}
		if err := dtype.BF16.FromFloat32(raw, values); err != nil {
			return err
		}
		if _, err := w.Write(raw); err != nil {
			return err
		}
	}
	return nil
}

func (m randomLlama) writeIDs(w io.Writer, n int) error {
	r := rand.New(rand.NewPCG(0, 2))
	ids := make([]uint16, n)
	for i := range ids {
		ids[i] = uint16(r.IntN(m.Vocabulary))
	}
	return binary.Write(w, binary.LittleEndian, ids)
}
