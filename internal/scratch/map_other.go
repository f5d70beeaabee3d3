//go:build !unix

package scratch

import "errors"

const mappable = false

func mapped(string, int64, bool) ([]byte, error) { return nil, errors.ErrUnsupported }
func unmap([]byte)                               {}
func floatsOf([]byte, int) []float32             { return nil }
