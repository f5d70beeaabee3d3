//go:build race

package blas

// The race detector makes sync.Pool drop buffers at random.
const raceDetector = true
