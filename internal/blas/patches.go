package blas

// Patches is the geometry in which a 2-D convolution reads an image: the shape
// of one image and of the windows that slide over it.
type Patches struct {
	Channels, Height, Width int
	KernelH, KernelW        int
	StrideH, StrideW        int
	PadH, PadW              int
	DilationH, DilationW    int
	Groups                  int
}

// OutH and OutW are the height and the width of the output.
func (g Patches) OutH() int {
	return (g.Height+2*g.PadH-g.DilationH*(g.KernelH-1)-1)/g.StrideH + 1
}

// OutW is the width of the output.
func (g Patches) OutW() int {
	return (g.Width+2*g.PadW-g.DilationW*(g.KernelW-1)-1)/g.StrideW + 1
}

// Rows is the number of patches of one image.
func (g Patches) Rows() int { return g.OutH() * g.OutW() }

// Inputs is the length of one group's patch: channels/groups · kernel area.
func (g Patches) Inputs() int { return g.Channels / g.Groups * g.KernelH * g.KernelW }

// Gather writes patches from … from+n−1 of one group of an image as rows of
// dst, each Inputs long with the given stride, in the order of a flattened
// weight (channel, kernel row, kernel column). The image is Channels × Height ×
// Width; what lies outside reads as zero.
func (g Patches) Gather(dst []float32, stride int, image []float32, group, from, n int) {
	if n == 0 {
		return
	}
	top := from / g.OutW()
	u := unfold(g, image, group, top, (from+n-1)/g.OutW()-top+1, false)
	u.gather(dst, stride, from, n)
	u.release()
}
