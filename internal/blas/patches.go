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
	perGroup, outW := g.Channels/g.Groups, g.OutW()
	area := g.Height * g.Width
	planes := image[group*perGroup*area:][:perGroup*area]
	for r := 0; r < n; {
		oy, ox := (from+r)/outW, (from+r)%outW
		run := min(n-r, outW-ox)
		g.gatherRun(dst[r*stride:], stride, planes, oy*g.StrideH-g.PadH, ox*g.StrideW-g.PadW, run)
		r += run
	}
}

// gatherRun writes the patches of run neighbours in one row of the output, the
// first of which begins at (y0, x0): one row of all windows after another, so
// that a line of the image is read at once.
func (g Patches) gatherRun(dst []float32, stride int, planes []float32, y0, x0, run int) {
	// Windows first … last−1 lie inside the image from left to right.
	first, last := run, run
	if g.DilationW == 1 {
		first = min(max(0, (-x0+g.StrideW-1)/g.StrideW), run)
		last = max(first, min(run, (g.Width-g.KernelW-x0)/g.StrideW+1))
		if g.Width-g.KernelW-x0 < 0 {
			last = first
		}
	}
	kw, at := g.KernelW, 0
	for ; len(planes) > 0; planes = planes[g.Height*g.Width:] {
		for ky := range g.KernelH {
			y := y0 + ky*g.DilationH
			if y < 0 || y >= g.Height {
				for r := range run {
					clear(dst[r*stride+at:][:kw])
				}
				at += kw
				continue
			}
			line := planes[y*g.Width:][:g.Width]
			for r := range first {
				g.gatherEdge(dst[r*stride+at:][:kw], line, x0+r*g.StrideW)
			}
			if kw == 3 {
				for r := first; r < last; r++ {
					window, x := dst[r*stride+at:][:3], line[x0+r*g.StrideW:][:3]
					window[0], window[1], window[2] = x[0], x[1], x[2]
				}
			} else {
				for r := first; r < last; r++ {
					copy(dst[r*stride+at:][:kw], line[x0+r*g.StrideW:])
				}
			}
			for r := last; r < run; r++ {
				g.gatherEdge(dst[r*stride+at:][:kw], line, x0+r*g.StrideW)
			}
			at += kw
		}
	}
}

// gatherEdge copies the part of a window's row that lies within a line of the
// image, and zero elsewhere.
func (g Patches) gatherEdge(window, line []float32, x0 int) {
	for kx := range window {
		window[kx] = 0
		if x := x0 + kx*g.DilationW; x >= 0 && x < len(line) {
			window[kx] = line[x]
		}
	}
}
