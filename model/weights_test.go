package model

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/fettle-dev/fettle/internal/dtype"
	"github.com/fettle-dev/fettle/loader"
)

func TestWeightsAlone(t *testing.T) {
	var tensors []loader.Tensor
	var want []string
	add := func(isLayer bool, name string, shape ...int) {
		tensors = append(tensors, loader.Tensor{Name: name, DType: dtype.F32, Shape: shape})
		if isLayer {
			want = append(want, strings.TrimSuffix(name, ".weight"))
		}
	}
	add(false, "model.embed_tokens.weight", 100, 16)
	add(false, "transformer.wte.weight", 100, 16)
	add(false, "shared.weight", 100, 16)
	add(false, "embeddings.word_embeddings.weight", 100, 16)
	add(false, "pos_embed", 20, 16)
	add(false, "attn.relative_position_bias_table", 169, 4)
	add(false, "block_sparse_moe.gate.weight", 8, 16)
	add(false, "q.weight_scale_inv", 2, 2)
	add(false, "norm.weight", 16)
	add(false, "head_1.weight", 1, 16)
	add(false, "experts.w1", 4, 8, 16)
	add(false, "conv1d.weight", 4, 8, 3)
	add(false, "layer_scale", 1, 8, 1, 1)
	add(true, "patch_embed.proj.weight", 8, 3, 4, 4)
	add(true, "time_embed.0.weight", 16, 8)
	add(true, "shared_expert.gate_proj.weight", 8, 16)
	add(true, "lm_head.weight", 100, 16)
	add(true, "in_proj_weight", 48, 16)
	add(true, "depthwise.weight", 8, 1, 3, 3)
	add(false, "depthwise.bias", 8)
	tensors = append(tensors, loader.Tensor{Name: "ids.weight", DType: dtype.I64, Shape: []int{4, 4}})

	g, err := Build(tensors, Options{Architecture: WeightsAlone, Groups: map[string]int{"depthwise": 8}})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, op := range g.Ops {
		got = append(got, op.Name)
	}
	if !slices.Equal(got, want) {
		t.Errorf("layers %v, want %v", got, want)
	}
	last := g.Ops[len(g.Ops)-1]
	if last.Groups() != 8 || last.Conv.Inputs() != 9 || last.Bias != "depthwise.bias" {
		t.Errorf("depthwise: %+v", last)
	}
	if _, err := NewExecutor(g, nil, nil).Forward(context.Background(), &Tensor{}); !errors.Is(err, ErrDetached) {
		t.Errorf("ran: %v", err)
	}
	g.Detached = false
	if g.Check() == nil {
		t.Error("layers that read what nothing writes are no graph that runs")
	}

	_, err = Build(tensors, Options{Architecture: WeightsAlone, Groups: map[string]int{"depthwise": 3}})
	if bad, ok := errors.AsType[*TensorError](err); !ok || bad.Tensor != "depthwise.weight" {
		t.Errorf("three groups of eight outputs: %v", err)
	}
	for _, o := range []Options{{Activation: "relu"}, {InputShape: []int{1}}} {
		o.Architecture = WeightsAlone
		if _, err := Build(tensors, o); !isOption(err) {
			t.Errorf("%+v: %v", o, err)
		}
	}
	if _, err := Build(tensors[:3], Options{Architecture: WeightsAlone}); !isOption(err) {
		t.Errorf("tables alone: %v", err)
	}
	if _, err := Build(tensors, Options{}); err == nil || !strings.Contains(err.Error(), Ways) {
		t.Errorf("an unknown model is told no way: %v", err)
	}
}

func isOption(err error) bool {
	_, ok := errors.AsType[*OptionError](err)
	return ok
}
