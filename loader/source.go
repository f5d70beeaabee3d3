package loader

// SourceBytes returns the bytes that the file has of the tensor: its StoredBytes, and of
// what a view has cut of a tensor with an Encoding its share.
func (t Tensor) SourceBytes() int64 {
	if t.keep == nil {
		return t.StoredBytes()
	}
	whole := t
	whole.keep, whole.whole, whole.Shape = nil, nil, t.whole
	if n := whole.Elements(); n > 0 {
		return int64(float64(whole.StoredBytes()) * float64(t.Elements()) / float64(n))
	}
	return 0
}
