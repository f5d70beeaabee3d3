//go:build !amd64 || purego

package blas

func available() []*set { return []*set{generic} }
