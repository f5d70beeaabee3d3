// Package model turns a checkpoint into a computation graph and runs it.
//
// A Graph is data: operations and values in a list, with the names of the
// tensors that they read. It can be printed, hashed, marshalled and checked;
// it holds no weights and no code. Build makes one from a checkpoint's tensors
// with the builder of its architecture, and an Executor computes it, one
// operation or the whole graph at a time.
//
// BatchNorm stays an operation of its own and is never folded into weights, so
// that a compressed checkpoint keeps the original's tensors.
//
// A language model's samples are tokens. Its graph comes from the tensors and a
// Hugging Face folder's config.json, where a key that is not known is an error.
// NewTokens batches sequences of any lengths without padding; only attention
// knows where one ends. Hidden and Head keep the logits, tokens × vocabulary,
// from being whole at once.
//
// Sites lists what a graph can do without: blocks, sublayers, heads, channels.
// They are found by walking it, with all that must be cut along; Remove says what
// of the tensors and of config.json is left, and builds the smaller model.
//
// Each architecture is one file with one builder; see builders in build.go.
// Families of decoders share the pieces of decoder.go and llama.go.
package model
