package blas

import (
	"slices"
	"sync"
	"unsafe"
)

// unfolded is a part of an image laid out so that a convolution's patches are
// runs of it: padded with zeros, and for a stride s split into s×s pictures of
// every s-th row and column. Number k of the patch of output (y, x) is
// data[offsets[k] + (y−top)·line + x].
type unfolded struct {
	geometry Patches
	rows     int // of outputs
	top      int // first row of outputs
	line     int
	offsets  []int32
	phases   []phase // those that patches read
	height   int     // of one phase
	data     []float32
	own      []float32
	starts   []unsafe.Pointer // of the offsets in data, while gathering
}

type phase struct{ y, x int }

// run is a part of a vector of outputs that lies in one row of an image: the
// lanes of mask, read at from + lane.
type run struct {
	from int
	mask int
}

var unfoldings sync.Pool // of *unfolded

// beyond is how many numbers a kernel may read after the last.
const beyond = 64

// unfold lays out what the output rows top … top+rows−1 of one group read.
// With copied set, the data is followed by numbers that may be read.
func unfold(g Patches, image []float32, group, top, rows int, copied bool) *unfolded {
	u, ok := unfoldings.Get().(*unfolded)
	if !ok {
		u = &unfolded{}
	}
	plain := g.StrideH == 1 && g.StrideW == 1 && g.PadH == 0 && g.PadW == 0 && !copied
	u.plan(g, rows, plain)
	u.top = top
	channels := g.Channels / g.Groups
	image = image[group*channels*g.Height*g.Width:][:channels*g.Height*g.Width]
	if plain {
		u.data = image[top*g.Width:]
		return u
	}
	size := channels * len(u.phases) * u.height * u.line
	if cap(u.own) < size+beyond {
		u.own = make([]float32, size+beyond)
	}
	u.data = u.own[:size+beyond]
	at := 0
	for c := range channels {
		plane := image[c*g.Height*g.Width:][:g.Height*g.Width]
		for _, ph := range u.phases {
			for y := range u.height {
				copyLine(u.data[at:][:u.line], plane, g, (top+y)*g.StrideH+ph.y-g.PadH, ph.x-g.PadW)
				at += u.line
			}
		}
	}
	return u
}

func (u *unfolded) release() {
	u.data = nil
	clear(u.starts)
	unfoldings.Put(u)
}

// copyLine writes every StrideW-th number of image row y, from column x on.
func copyLine(dst, plane []float32, g Patches, y, x int) {
	if y < 0 || y >= g.Height {
		clear(dst)
		return
	}
	row := plane[y*g.Width:][:g.Width]
	before := 0
	if x < 0 {
		before = min(len(dst), ceil(-x, g.StrideW))
	}
	clear(dst[:before])
	x += before * g.StrideW
	inside := 0
	if x < g.Width {
		inside = min(len(dst)-before, ceil(g.Width-x, g.StrideW))
	}
	part := dst[before : before+inside]
	if g.StrideW == 1 {
		copy(part, row[x:])
	} else {
		for i := range part {
			part[i] = row[x+i*g.StrideW]
		}
	}
	clear(dst[before+inside:])
}

// plan sets the layout and the offsets, unless they are those of the last use.
func (u *unfolded) plan(g Patches, rows int, plain bool) {
	height, line := g.Height, g.Width
	if !plain {
		height = rows + (g.DilationH*(g.KernelH-1))/g.StrideH
		line = g.OutW() + (g.DilationW*(g.KernelW-1))/g.StrideW
	}
	if u.geometry == g && u.rows == rows && u.height == height && u.line == line && len(u.offsets) == g.Inputs() {
		return
	}
	u.geometry, u.rows, u.height, u.line = g, rows, height, line
	u.phases, u.offsets = u.phases[:0], u.offsets[:0]
	for ky := range g.KernelH {
		for kx := range g.KernelW {
			u.phase(ky*g.DilationH%g.StrideH, kx*g.DilationW%g.StrideW)
		}
	}
	for c := range g.Channels / g.Groups {
		for ky := range g.KernelH {
			for kx := range g.KernelW {
				y, x := ky*g.DilationH, kx*g.DilationW
				plane := c*len(u.phases) + u.phase(y%g.StrideH, x%g.StrideW)
				u.offsets = append(u.offsets, int32((plane*height+y/g.StrideH)*line+x/g.StrideW))
			}
		}
	}
}

// phase returns the index of a phase, adding it if it is new.
func (u *unfolded) phase(y, x int) int {
	for i, ph := range u.phases {
		if ph == (phase{y, x}) {
			return i
		}
	}
	u.phases = append(u.phases, phase{y, x})
	return len(u.phases) - 1
}

// at returns where the patch of an output (row-major over the image) begins.
func (u *unfolded) at(output int) int {
	w := u.geometry.OutW()
	return (output/w-u.top)*u.line + output%w
}

// packPatches packs a panel of patches: outputs at … at+cols−1, and of each
// numbers k0 … k0+k−1.
func packPatches(dst []float32, u *unfolded, lanes, at, cols, width, k0, k int) {
	_ = dst[width*k-1]
	for v := 0; v < width; v += lanes {
		var runs [4]run
		n := u.runs(&runs, at+v, min(lanes, cols-v))
		if n <= len(runs) && use.window != nil {
			use.window(unsafe.Pointer(&dst[v]), width*4, unsafe.Pointer(&u.data[0]), unsafe.Pointer(&u.offsets[k0]), k, &runs)
			continue
		}
		for c := range min(lanes, cols-v) {
			from := u.at(at + v + c)
			for i, o := range u.offsets[k0 : k0+k] {
				dst[i*width+v+c] = u.data[from+int(o)]
			}
		}
	}
}

// runs cuts n outputs into runs that lie together and returns how many
// there are; only as many as fit are written.
func (u *unfolded) runs(runs *[4]run, output, n int) int {
	count, w := 0, u.geometry.OutW()
	if w == u.line {
		w = u.geometry.Rows() // rows follow each other
	}
	for lane := 0; lane < n; count++ {
		length := min(n-lane, w-(output+lane)%w)
		if count < len(runs) {
			runs[count] = run{from: u.at(output+lane) - lane, mask: (1<<length - 1) << lane}
		}
		lane += length
	}
	return count
}

// gather writes the patches of outputs from … from+n−1 as rows of dst.
func (u *unfolded) gather(dst []float32, stride, from, n int) {
	inputs, w := len(u.offsets), u.geometry.OutW()
	kr := use.f32
	if inputs < kr.square {
		for r := range n {
			at := u.at(from + r)
			row := dst[r*stride:][:inputs]
			for i, o := range u.offsets {
				row[i] = u.data[at+int(o)]
			}
		}
		return
	}
	_ = dst[(n-1)*stride+inputs-1]
	_ = u.data[u.at(from+n-1)+int(slices.Max(u.offsets))]
	u.starts = u.starts[:0]
	for _, o := range u.offsets {
		u.starts = append(u.starts, unsafe.Pointer(&u.data[o]))
	}
	for r := 0; r < n; {
		length := min(n-r, w-(from+r)%w)
		at := u.at(from + r)
		for i := 0; i < inputs; i += kr.square {
			i = min(i, inputs-kr.square) // the last square overlaps
			kr.transpose(unsafe.Pointer(&dst[r*stride+i]), stride*4, &u.starts[i], at*4, length)
		}
		r += length
	}
}
