//go:build !purego

package blas

import "golang.org/x/sys/cpu"

// maskWords holds masks: so many words from its middle on are set.
var maskWords = func() (w [32]int32) { //nolint:unused // read by the assembly
	for i := range 16 {
		w[i] = -1
	}
	return w
}()

// bitWords picks each bit of a byte.
var bitWords = [8]int32{1, 2, 4, 8, 16, 32, 64, 128} //nolint:unused // read by the assembly

var avx512 = &set{
	name: "avx512",
	f32: &kernels{
		kc: kc32, rows: 14, cols: 32, half: 16, step: 16, lanes: 16, square: 16,
		tiles: newTiles(tilesf32x512), direct: []func(*tile){1: direct1x1f32x512, 2: direct1x2f32x512},
		copyPanel: copyPanelx512, copyPanels: copyPanelsx512, transpose: transposef32x512,
	},
	f64: &kernels{
		kc: kc64, rows: 14, cols: 16, half: 8, step: 16, lanes: 8, square: 8,
		tiles: newTiles(tilesf64x512), copyPanel: copyPanelx512, copyPanels: copyPanelsx512, transpose: transposef64x512,
	},
	addTile: addTilex512, window: windowx512,
}

var avx2 = &set{
	name: "avx2",
	f32: &kernels{
		kc: kc32, rows: 6, cols: 16, half: 8, step: 8, lanes: 8, square: 8,
		tiles: newTiles(tilesf32x256), direct: []func(*tile){1: direct1x1f32x256, 2: direct1x2f32x256},
		copyPanel: copyPanelx256, copyPanels: copyPanelsx256, transpose: transposef32x256,
	},
	f64: &kernels{
		kc: kc64, rows: 6, cols: 8, half: 4, step: 8, lanes: 4, square: 4,
		tiles: newTiles(tilesf64x256), copyPanel: copyPanelx256, copyPanels: copyPanelsx256, transpose: transposef64x256,
	},
	addTile: addTilex256, window: windowx256,
}

func available() []*set {
	var sets []*set
	x := &cpu.X86
	if x.HasAVX2 && x.HasFMA {
		if x.HasAVX512F && x.HasAVX512DQ && x.HasAVX512BW && x.HasAVX512VL && x.HasBMI2 {
			sets = append(sets, avx512)
		}
		sets = append(sets, avx2)
	}
	return append(sets, generic)
}
