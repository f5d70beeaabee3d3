package vec

import (
	"fmt"
	"unsafe"
)

// memory hands out slices of one block, each at an odd place of its own, with
// canaries between them. Where the system can do it, the pages before and
// after the block may not be touched.
type memory struct {
	block []byte
	atEnd bool // hand out from the end down, so that slices end at the guard
	used  int
	spans [][2]int // of slices, in order of place in the block
}

const canary = 0xa5

func (m *memory) reset() {
	for i := range m.block {
		m.block[i] = canary
	}
}

// take returns n bytes.
func (m *memory) take(n int) []byte { return m.place(n, 1) }

func (m *memory) place(n, align int) []byte {
	from := m.used
	if m.used > 0 {
		from += 4 + align*(len(m.spans)%5)
		from = (from + align - 1) / align * align
	}
	if m.atEnd {
		from = len(m.block) - from - n
		from = from / align * align
		m.used = len(m.block) - from
	} else {
		m.used = from + n
	}
	m.spans = append(m.spans, [2]int{from, from + n})
	return m.block[from : from+n : from+n]
}

func (m *memory) float32s(n int) []float32 {
	return unsafe.Slice((*float32)(unsafe.Pointer(unsafe.SliceData(m.place(4*n, 4)))), n)
}

func (m *memory) float64s(n int) []float64 {
	return unsafe.Slice((*float64)(unsafe.Pointer(unsafe.SliceData(m.place(8*n, 8)))), n)
}

func (m *memory) int8s(n int) []int8 {
	return unsafe.Slice((*int8)(unsafe.Pointer(unsafe.SliceData(m.place(n, 1)))), n)
}

// mark and release free what was taken in between.
func (m *memory) mark() [2]int { return [2]int{m.used, len(m.spans)} }

func (m *memory) release(mark [2]int) {
	for _, s := range m.spans[mark[1]:] {
		for i := s[0]; i < s[1]; i++ {
			m.block[i] = canary
		}
	}
	m.used, m.spans = mark[0], m.spans[:mark[1]]
}

// check looks at the bytes that no slice holds.
func (m *memory) check() error {
	free := func(from, to int) error {
		for i := from; i < to; i++ {
			if m.block[i] != canary {
				return fmt.Errorf("byte %d beside the slices was written", i)
			}
		}
		return nil
	}
	at, end := 0, 0
	for _, s := range m.spans {
		from, to := at, s[0]
		at = s[1]
		if m.atEnd {
			from, to = s[1], len(m.block)-end
			end = len(m.block) - s[0]
		}
		if err := free(from, to); err != nil {
			return err
		}
	}
	if m.atEnd {
		return free(max(0, len(m.block)-end-256), len(m.block)-end)
	}
	return free(at, min(len(m.block), at+256))
}
