package model

import (
	"slices"

	"github.com/fettle-dev/fettle/loader"
)

// The encoders of text in the naming of Transformers: BERT (Devlin et al. 2019),
// RoBERTa (Liu et al. 2019) and XLM-RoBERTa, which count positions from behind
// the padding's id on, ELECTRA (Clark et al. 2020), whose embedding may be
// narrower, and DistilBERT (Sanh et al. 2019) without token types.
//
// Token types are all 0, as for a text of one piece. Without a head the output
// is the last hidden state; a pooler, where the checkpoint has one, is computed
// beside it.
const (
	bert       = "bert"
	roberta    = "roberta"
	xlmRoberta = "xlm-roberta"
	electra    = "electra"
	distilbert = "distilbert"
)

// The heads, by the endings of their classes' names.
const (
	headless     = "Model"
	maskedHead   = "ForMaskedLM"
	pretrained   = "ForPreTraining"
	classHead    = "ForSequenceClassification"
	tokenHead    = "ForTokenClassification"
	questionHead = "ForQuestionAnswering"
)

var bertBlock = blockNames{
	stem: "encoder.layer.", attention: "attention.self",
	q: "attention.self.query", k: "attention.self.key", v: "attention.self.value", o: "attention.output.dense",
	attendNorm: "attention.output.LayerNorm", inner: "intermediate.dense", outer: "output.dense", mlpNorm: "output.LayerNorm",
	qBias: true, kBias: true,
}

var distilBlock = blockNames{
	stem: "transformer.layer.", attention: "attention",
	q: "attention.q_lin", k: "attention.k_lin", v: "attention.v_lin", o: "attention.out_lin",
	attendNorm: "sa_layer_norm", inner: "ffn.lin1", outer: "ffn.lin2", mlpNorm: "output_layer_norm",
	qBias: true, kBias: true,
}

func buildBERT(tensors []loader.Tensor, o Options) (*Graph, error) {
	return buildBERTLike(bert, "Bert", "bert.", []string{headless, maskedHead, pretrained, classHead, tokenHead, questionHead}, tensors, o)
}

func buildRoBERTa(tensors []loader.Tensor, o Options) (*Graph, error) {
	return buildBERTLike(roberta, "Roberta", "roberta.", []string{headless, maskedHead, classHead, tokenHead, questionHead}, tensors, o)
}

func buildXLMRoBERTa(tensors []loader.Tensor, o Options) (*Graph, error) {
	return buildBERTLike(xlmRoberta, "XLMRoberta", "roberta.", []string{headless, maskedHead, classHead, tokenHead, questionHead}, tensors, o)
}

func buildELECTRA(tensors []loader.Tensor, o Options) (*Graph, error) {
	return buildBERTLike(electra, "Electra", "electra.", []string{headless, maskedHead, pretrained, classHead, tokenHead, questionHead}, tensors, o)
}

func buildBERTLike(architecture, class, prefix string, heads []string, tensors []loader.Tensor, o Options) (*Graph, error) {
	e := newEncoder(architecture, class, []string{prefix}, heads, []int{1}, tensors, o)
	c := e.c
	e.sizes(encoderKeys{"hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"}, c.eps("layer_norm_eps", 1e-12))
	only(c, "position_embedding_type", "absolute")
	c.pass(`hidden_dropout_prob attention_probs_dropout_prob classifier_dropout output_past directionality pooler_fc_size
		pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type summary_last_dropout
		sbert_ce_default_activation_function sentence_transformers`)
	t := Embedding{Types: "embeddings.token_type_embeddings.weight", TypeRows: c.count("type_vocab_size", 2)}
	width := e.hidden
	switch architecture {
	case roberta, xlmRoberta:
		pad := get(c, "pad_token_id", 1)
		if pad < 0 || pad > maxCount {
			c.fail("pad_token_id", "cannot be %d", pad)
		}
		t.PositionOffset, t.PaddingUncounted = pad+1, true
	case electra:
		width = c.count("embedding_size", 128)
	}
	e.s.ignore(e.prefix + "embeddings.position_ids") // buffers of old versions
	e.s.ignore(e.prefix + "embeddings.token_type_ids")
	x := e.words("embeddings.", width, 512, maskedNames[architecture].decoder, t)
	if width != e.hidden {
		x = e.layer(e.prefix, "embeddings_project", x, e.hidden, true, "")
	}
	return e.build(x, func(i, x int) int { return e.encoderBlock(&bertBlock, i, x) }, e.bertHead)
}

func buildDistilBERT(tensors []loader.Tensor, o Options) (*Graph, error) {
	e := newEncoder(distilbert, "DistilBert", []string{"distilbert."}, []string{headless, maskedHead, classHead, tokenHead, questionHead}, []int{1}, tensors, o)
	e.sizes(encoderKeys{"dim", "n_layers", "n_heads", "hidden_dim", "activation"}, 1e-12)
	e.c.pass("dropout qa_dropout seq_classif_dropout sinusoidal_pos_embds tie_weights_ output_past")
	e.s.ignore(e.prefix + "embeddings.position_ids")
	x := e.words("embeddings.", e.hidden, 512, maskedNames[distilbert].decoder, Embedding{})
	return e.build(x, func(i, x int) int { return e.encoderBlock(&distilBlock, i, x) }, e.bertHead)
}

// words appends the sum of a token's embeddings and its normalization. decoder is
// the layer of a masked language model's head that shares the table.
func (e *encoder) words(name string, width, context int, decoder string, t Embedding) int {
	e.vocabulary = e.c.count("vocab_size", 0)
	t.Table, t.Rows, t.Width = e.prefix+name+"word_embeddings.weight", e.vocabulary, width
	t.Positions = e.prefix + name + "position_embeddings.weight"
	rows := e.c.count("max_position_embeddings", context)
	if t.MaxPositions = rows - t.PositionOffset; t.MaxPositions < 1 {
		e.c.fail("max_position_embeddings", "%d positions leave none from %d on", rows, t.PositionOffset)
	}
	e.g.Context = t.MaxPositions
	tied := get(e.c, "tie_word_embeddings", true)
	if head := decoder + ".weight"; tied && e.s.has(head) && (e.head == maskedHead || e.head == pretrained) {
		if e.s.has(t.Table) {
			e.s.ignore(head)
			e.g.Copies = append(e.g.Copies, Copy{Of: t.Table, Name: head})
		} else {
			t.Table = head
		}
	}
	e.table = decoder + ".weight"
	if tied {
		e.table = t.Table
	}
	e.s.take(t.Table, t.Rows, width)
	e.s.take(t.Positions, rows, width)
	if t.Types != "" {
		t.Types = e.prefix + t.Types
		e.s.take(t.Types, t.TypeRows, width)
	}
	x := e.add(Op{Kind: Embed, Name: name + "word_embeddings", Inputs: []int{0}, Embedding: &t})
	return e.norm(name+"LayerNorm", x)
}

// maskedHeadNames are the layers of a masked language model's head: a layer with
// an activation and a normalization, then the decoder, whose bias has a name of
// its own.
type maskedHeadNames struct{ dense, norm, decoder, bias string }

var maskedNames = map[string]maskedHeadNames{
	bert:       {"cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.decoder", "cls.predictions.bias"},
	roberta:    {"lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "lm_head.bias"},
	xlmRoberta: {"lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "lm_head.bias"},
	electra:    {"generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head", "generator_lm_head.bias"},
	distilbert: {"vocab_transform", "vocab_layer_norm", "vocab_projector", "vocab_projector.bias"},
}

// bertHead appends what stands on the last hidden state.
func (e *encoder) bertHead(x int) int {
	architecture := e.g.Architecture
	head := e.head
	if head == pretrained && architecture == bert {
		head = maskedHead
	}
	pooler := e.prefix + "pooler.dense"
	switch {
	case architecture == distilbert || architecture == electra || head == headless: // has none, or reads it
	case head != classHead || architecture != bert:
		e.s.ignore(pooler + ".weight") // stored and not read
		e.s.ignore(pooler + ".bias")
	}
	switch head {
	case maskedHead:
		return e.maskedHead(x)
	case pretrained: // ELECTRA's discriminator: one number for each token
		x = e.layer("", "discriminator_predictions.dense", x, e.hidden, true, "")
		x = e.apply(e.activate, "discriminator_predictions.act", x)
		e.g.Task = Features
		return e.layer("", "discriminator_predictions.dense_prediction", x, 1, true, "")
	case classHead:
		return e.classHead(x)
	case tokenHead:
		return e.classify("classifier", x, TokenClasses)
	case questionHead: // where an answer begins and ends: softmax is over the tokens
		e.g.Task = Features
		return e.layer("", "qa_outputs", x, e.classes("qa_outputs.weight", e.hidden), true, "")
	}
	e.g.Task = Features
	if e.s.has(pooler + ".weight") {
		e.pool(x)
	}
	return x
}

// pool appends BERT's pooler.
func (e *encoder) pool(x int) int {
	y := e.layer(e.prefix, "pooler.dense", e.first("pooler.first", x), e.hidden, true, "")
	return e.apply(Tanh, "pooler.activation", y)
}

func (e *encoder) maskedHead(x int) int {
	n := maskedNames[e.g.Architecture]
	e.g.Task = TokenClasses
	kind := e.activate
	if slices.Contains([]string{roberta, xlmRoberta, electra}, e.g.Architecture) {
		kind = GELU // whatever the blocks have
	}
	width := e.hidden
	if e.g.Architecture == electra {
		width = e.c.count("embedding_size", 128)
	}
	x = e.apply(kind, n.dense+"_act", e.layer("", n.dense, x, width, true, ""))
	encoderPrefix := e.prefix
	e.prefix = ""
	x = e.norm(n.norm, x)
	e.prefix = encoderPrefix
	for _, name := range []string{"cls.seq_relationship.weight", "cls.seq_relationship.bias"} {
		if e.g.Architecture == bert {
			e.s.ignore(name) // the other task of pretraining
		}
	}
	if copied := n.decoder + ".bias"; copied != n.bias && e.s.has(copied) {
		if e.s.has(n.bias) {
			e.s.ignore(copied)
			e.g.Copies = append(e.g.Copies, Copy{Of: n.bias, Name: copied})
		} else {
			n.bias = copied
		}
	}
	e.s.take(e.table, e.vocabulary, width)
	e.s.take(n.bias, e.vocabulary)
	return e.add(Op{Kind: Linear, Name: n.decoder, Inputs: []int{x}, Weight: e.table, Bias: n.bias, Outputs: e.vocabulary})
}

// classHead appends the classifier of sequences, over their first token.
func (e *encoder) classHead(x int) int {
	switch e.g.Architecture {
	case bert:
		return e.classify("classifier", e.pool(x), SequenceClasses)
	case distilbert:
		x = e.layer("", "pre_classifier", e.first("pre_classifier.first", x), e.hidden, true, "")
		return e.classify("classifier", e.apply(ReLU, "pre_classifier.act", x), SequenceClasses)
	}
	x = e.layer("", "classifier.dense", e.first("classifier.first", x), e.hidden, true, "")
	kind := Tanh
	if e.g.Architecture == electra {
		kind = GELU
	}
	return e.classify("classifier.out_proj", e.apply(kind, "classifier.act", x), SequenceClasses)
}
