//go:build !linux

package pipeline

// physicalMemory is not known here.
func physicalMemory() int64 { return 0 }
