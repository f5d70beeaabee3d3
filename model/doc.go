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
// Each architecture is one file with one builder; see builders in build.go.
package model
