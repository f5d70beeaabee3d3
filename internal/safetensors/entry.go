package safetensors

import "bytes"

// EntrySize returns at most how many bytes a tensor's entry takes in the header of a
// file that is no longer than limit, with the comma before it: the tensor's bytes are
// not counted. It is less by a byte for each digit that the tensor's offsets have
// fewer than limit.
func EntrySize(t Source, limit int64) (int64, error) {
	var b bytes.Buffer
	err := encodeEntry(&b, t, limit, limit)
	return int64(b.Len()) + 1, err
}

// FrameSize returns at most what a file has beside tensors and their entries: length,
// braces, metadata and what fills up to a multiple of 8 bytes.
func FrameSize(metadata map[string]string) (int64, error) {
	header, _, err := encodeHeader(nil, metadata)
	return int64(len(header)) + 7, err
}
