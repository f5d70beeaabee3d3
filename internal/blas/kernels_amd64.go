// Written by internal/asm/gemm. DO NOT EDIT.

//go:build !purego

package blas

import "unsafe"

// tile1x1f32x512 multiplies a tile of 1 rows and 1 vectors, rows of B taken at a stride.
//
//go:noescape
func tile1x1f32x512(t *tile)

// tile1x2f32x512 multiplies a tile of 1 rows and 2 vectors, rows of B taken at a stride.
//
//go:noescape
func tile1x2f32x512(t *tile)

// tile2x1f32x512 multiplies a tile of 2 rows and 1 vectors, rows of B taken at a stride.
//
//go:noescape
func tile2x1f32x512(t *tile)

// tile2x2f32x512 multiplies a tile of 2 rows and 2 vectors, rows of B taken at a stride.
//
//go:noescape
func tile2x2f32x512(t *tile)

// tile3x1f32x512 multiplies a tile of 3 rows and 1 vectors, rows of B taken at a stride.
//
//go:noescape
func tile3x1f32x512(t *tile)

// tile3x2f32x512 multiplies a tile of 3 rows and 2 vectors, rows of B taken at a stride.
//
//go:noescape
func tile3x2f32x512(t *tile)

// tile4x1f32x512 multiplies a tile of 4 rows and 1 vectors, rows of B taken at a stride.
//
//go:noescape
func tile4x1f32x512(t *tile)

// tile4x2f32x512 multiplies a tile of 4 rows and 2 vectors, rows of B taken at a stride.
//
//go:noescape
func tile4x2f32x512(t *tile)

// tile5x1f32x512 multiplies a tile of 5 rows and 1 vectors, rows of B taken at a stride.
//
//go:noescape
func tile5x1f32x512(t *tile)

// tile5x2f32x512 multiplies a tile of 5 rows and 2 vectors, rows of B taken at a stride.
//
//go:noescape
func tile5x2f32x512(t *tile)

// tile6x1f32x512 multiplies a tile of 6 rows and 1 vectors, rows of B taken at a stride.
//
//go:noescape
func tile6x1f32x512(t *tile)

// tile6x2f32x512 multiplies a tile of 6 rows and 2 vectors, rows of B taken at a stride.
//
//go:noescape
func tile6x2f32x512(t *tile)

// tile7x1f32x512 multiplies a tile of 7 rows and 1 vectors, rows of B taken at a stride.
//
//go:noescape
func tile7x1f32x512(t *tile)

// tile7x2f32x512 multiplies a tile of 7 rows and 2 vectors, rows of B taken at a stride.
//
//go:noescape
func tile7x2f32x512(t *tile)

// tile8x1f32x512 multiplies a tile of 8 rows and 1 vectors, rows of B taken at a stride.
//
//go:noescape
func tile8x1f32x512(t *tile)

// tile8x2f32x512 multiplies a tile of 8 rows and 2 vectors, rows of B taken at a stride.
//
//go:noescape
func tile8x2f32x512(t *tile)

// tile9x1f32x512 multiplies a tile of 9 rows and 1 vectors, rows of B taken at a stride.
//
//go:noescape
func tile9x1f32x512(t *tile)

// tile9x2f32x512 multiplies a tile of 9 rows and 2 vectors, rows of B taken at a stride.
//
//go:noescape
func tile9x2f32x512(t *tile)

// tile10x1f32x512 multiplies a tile of 10 rows and 1 vectors, rows of B taken at a stride.
//
//go:noescape
func tile10x1f32x512(t *tile)

// tile10x2f32x512 multiplies a tile of 10 rows and 2 vectors, rows of B taken at a stride.
//
//go:noescape
func tile10x2f32x512(t *tile)

// tile11x1f32x512 multiplies a tile of 11 rows and 1 vectors, rows of B taken at a stride.
//
//go:noescape
func tile11x1f32x512(t *tile)

// tile11x2f32x512 multiplies a tile of 11 rows and 2 vectors, rows of B taken at a stride.
//
//go:noescape
func tile11x2f32x512(t *tile)

// tile12x1f32x512 multiplies a tile of 12 rows and 1 vectors, rows of B taken at a stride.
//
//go:noescape
func tile12x1f32x512(t *tile)

// tile12x2f32x512 multiplies a tile of 12 rows and 2 vectors, rows of B taken at a stride.
//
//go:noescape
func tile12x2f32x512(t *tile)

// tile13x1f32x512 multiplies a tile of 13 rows and 1 vectors, rows of B taken at a stride.
//
//go:noescape
func tile13x1f32x512(t *tile)

// tile13x2f32x512 multiplies a tile of 13 rows and 2 vectors, rows of B taken at a stride.
//
//go:noescape
func tile13x2f32x512(t *tile)

// tile14x1f32x512 multiplies a tile of 14 rows and 1 vectors, rows of B taken at a stride.
//
//go:noescape
func tile14x1f32x512(t *tile)

// tile14x2f32x512 multiplies a tile of 14 rows and 2 vectors, rows of B taken at a stride.
//
//go:noescape
func tile14x2f32x512(t *tile)

// tile1x8f32x512 multiplies a tile of 1 rows and 8 vectors, rows of B taken at a stride.
//
//go:noescape
func tile1x8f32x512(t *tile)

// tile2x8f32x512 multiplies a tile of 2 rows and 8 vectors, rows of B taken at a stride.
//
//go:noescape
func tile2x8f32x512(t *tile)

// tile3x6f32x512 multiplies a tile of 3 rows and 6 vectors, rows of B taken at a stride.
//
//go:noescape
func tile3x6f32x512(t *tile)

// tile4x6f32x512 multiplies a tile of 4 rows and 6 vectors, rows of B taken at a stride.
//
//go:noescape
func tile4x6f32x512(t *tile)

// tile5x4f32x512 multiplies a tile of 5 rows and 4 vectors, rows of B taken at a stride.
//
//go:noescape
func tile5x4f32x512(t *tile)

// tile6x4f32x512 multiplies a tile of 6 rows and 4 vectors, rows of B taken at a stride.
//
//go:noescape
func tile6x4f32x512(t *tile)

// tile7x3f32x512 multiplies a tile of 7 rows and 3 vectors, rows of B taken at a stride.
//
//go:noescape
func tile7x3f32x512(t *tile)

// tile8x3f32x512 multiplies a tile of 8 rows and 3 vectors, rows of B taken at a stride.
//
//go:noescape
func tile8x3f32x512(t *tile)

// direct1x1f32x512 multiplies a tile of 1 rows and 1 vectors, rows of B taken through a table of offsets.
//
//go:noescape
func direct1x1f32x512(t *tile)

// direct1x2f32x512 multiplies a tile of 1 rows and 2 vectors, rows of B taken through a table of offsets.
//
//go:noescape
func direct1x2f32x512(t *tile)

// copyPanelx512 packs k rows of at most two vectors of 32-bit words; ld is in bytes.
//
//go:noescape
func copyPanelx512(dst, src unsafe.Pointer, ld, k, words, vectors int)

// copyPanelsx512 packs k rows of panels of one or two whole vectors, panel i read at src+at[i] and written at dst+i·ldp; all in bytes.
//
//go:noescape
func copyPanelsx512(dst unsafe.Pointer, ldp int, src unsafe.Pointer, ld, k int, at *int32, panels, vectors int)

// transposef32x512 writes number i of each of 16 rows, counted from byte from on, side by side at dst+i·ldd, for i < k.
//
//go:noescape
func transposef32x512(dst unsafe.Pointer, ldd int, rows *unsafe.Pointer, from, k int)

// addTilex512 adds a float32 tile to a float64 matrix; cols is a multiple of 8, strides are in bytes.
//
//go:noescape
func addTilex512(dst unsafe.Pointer, ldd int, src unsafe.Pointer, lds, rows, cols int)

// windowx512 packs one vector of outputs for each of k offsets (32-bit, in elements) into an image.
//
//go:noescape
func windowx512(dst unsafe.Pointer, ldd int, image unsafe.Pointer, offsets unsafe.Pointer, k int, runs *[4]run)

// tilesf32x512 holds the kernels by rows and vectors.
var tilesf32x512 = tileTable{
	{1, 1}:  tile1x1f32x512,
	{1, 2}:  tile1x2f32x512,
	{2, 1}:  tile2x1f32x512,
	{2, 2}:  tile2x2f32x512,
	{3, 1}:  tile3x1f32x512,
	{3, 2}:  tile3x2f32x512,
	{4, 1}:  tile4x1f32x512,
	{4, 2}:  tile4x2f32x512,
	{5, 1}:  tile5x1f32x512,
	{5, 2}:  tile5x2f32x512,
	{6, 1}:  tile6x1f32x512,
	{6, 2}:  tile6x2f32x512,
	{7, 1}:  tile7x1f32x512,
	{7, 2}:  tile7x2f32x512,
	{8, 1}:  tile8x1f32x512,
	{8, 2}:  tile8x2f32x512,
	{9, 1}:  tile9x1f32x512,
	{9, 2}:  tile9x2f32x512,
	{10, 1}: tile10x1f32x512,
	{10, 2}: tile10x2f32x512,
	{11, 1}: tile11x1f32x512,
	{11, 2}: tile11x2f32x512,
	{12, 1}: tile12x1f32x512,
	{12, 2}: tile12x2f32x512,
	{13, 1}: tile13x1f32x512,
	{13, 2}: tile13x2f32x512,
	{14, 1}: tile14x1f32x512,
	{14, 2}: tile14x2f32x512,
	{1, 8}:  tile1x8f32x512,
	{2, 8}:  tile2x8f32x512,
	{3, 6}:  tile3x6f32x512,
	{4, 6}:  tile4x6f32x512,
	{5, 4}:  tile5x4f32x512,
	{6, 4}:  tile6x4f32x512,
	{7, 3}:  tile7x3f32x512,
	{8, 3}:  tile8x3f32x512,
}

// tile1x1f64x512 multiplies a tile of 1 rows and 1 vectors, rows of B taken at a stride.
//
//go:noescape
func tile1x1f64x512(t *tile)

// tile1x2f64x512 multiplies a tile of 1 rows and 2 vectors, rows of B taken at a stride.
//
//go:noescape
func tile1x2f64x512(t *tile)

// tile2x1f64x512 multiplies a tile of 2 rows and 1 vectors, rows of B taken at a stride.
//
//go:noescape
func tile2x1f64x512(t *tile)

// tile2x2f64x512 multiplies a tile of 2 rows and 2 vectors, rows of B taken at a stride.
//
//go:noescape
func tile2x2f64x512(t *tile)

// tile3x1f64x512 multiplies a tile of 3 rows and 1 vectors, rows of B taken at a stride.
//
//go:noescape
func tile3x1f64x512(t *tile)

// tile3x2f64x512 multiplies a tile of 3 rows and 2 vectors, rows of B taken at a stride.
//
//go:noescape
func tile3x2f64x512(t *tile)

// tile4x1f64x512 multiplies a tile of 4 rows and 1 vectors, rows of B taken at a stride.
//
//go:noescape
func tile4x1f64x512(t *tile)

// tile4x2f64x512 multiplies a tile of 4 rows and 2 vectors, rows of B taken at a stride.
//
//go:noescape
func tile4x2f64x512(t *tile)

// tile5x1f64x512 multiplies a tile of 5 rows and 1 vectors, rows of B taken at a stride.
//
//go:noescape
func tile5x1f64x512(t *tile)

// tile5x2f64x512 multiplies a tile of 5 rows and 2 vectors, rows of B taken at a stride.
//
//go:noescape
func tile5x2f64x512(t *tile)

// tile6x1f64x512 multiplies a tile of 6 rows and 1 vectors, rows of B taken at a stride.
//
//go:noescape
func tile6x1f64x512(t *tile)

// tile6x2f64x512 multiplies a tile of 6 rows and 2 vectors, rows of B taken at a stride.
//
//go:noescape
func tile6x2f64x512(t *tile)

// tile7x1f64x512 multiplies a tile of 7 rows and 1 vectors, rows of B taken at a stride.
//
//go:noescape
func tile7x1f64x512(t *tile)

// tile7x2f64x512 multiplies a tile of 7 rows and 2 vectors, rows of B taken at a stride.
//
//go:noescape
func tile7x2f64x512(t *tile)

// tile8x1f64x512 multiplies a tile of 8 rows and 1 vectors, rows of B taken at a stride.
//
//go:noescape
func tile8x1f64x512(t *tile)

// tile8x2f64x512 multiplies a tile of 8 rows and 2 vectors, rows of B taken at a stride.
//
//go:noescape
func tile8x2f64x512(t *tile)

// tile9x1f64x512 multiplies a tile of 9 rows and 1 vectors, rows of B taken at a stride.
//
//go:noescape
func tile9x1f64x512(t *tile)

// tile9x2f64x512 multiplies a tile of 9 rows and 2 vectors, rows of B taken at a stride.
//
//go:noescape
func tile9x2f64x512(t *tile)

// tile10x1f64x512 multiplies a tile of 10 rows and 1 vectors, rows of B taken at a stride.
//
//go:noescape
func tile10x1f64x512(t *tile)

// tile10x2f64x512 multiplies a tile of 10 rows and 2 vectors, rows of B taken at a stride.
//
//go:noescape
func tile10x2f64x512(t *tile)

// tile11x1f64x512 multiplies a tile of 11 rows and 1 vectors, rows of B taken at a stride.
//
//go:noescape
func tile11x1f64x512(t *tile)

// tile11x2f64x512 multiplies a tile of 11 rows and 2 vectors, rows of B taken at a stride.
//
//go:noescape
func tile11x2f64x512(t *tile)

// tile12x1f64x512 multiplies a tile of 12 rows and 1 vectors, rows of B taken at a stride.
//
//go:noescape
func tile12x1f64x512(t *tile)

// tile12x2f64x512 multiplies a tile of 12 rows and 2 vectors, rows of B taken at a stride.
//
//go:noescape
func tile12x2f64x512(t *tile)

// tile13x1f64x512 multiplies a tile of 13 rows and 1 vectors, rows of B taken at a stride.
//
//go:noescape
func tile13x1f64x512(t *tile)

// tile13x2f64x512 multiplies a tile of 13 rows and 2 vectors, rows of B taken at a stride.
//
//go:noescape
func tile13x2f64x512(t *tile)

// tile14x1f64x512 multiplies a tile of 14 rows and 1 vectors, rows of B taken at a stride.
//
//go:noescape
func tile14x1f64x512(t *tile)

// tile14x2f64x512 multiplies a tile of 14 rows and 2 vectors, rows of B taken at a stride.
//
//go:noescape
func tile14x2f64x512(t *tile)

// tile1x8f64x512 multiplies a tile of 1 rows and 8 vectors, rows of B taken at a stride.
//
//go:noescape
func tile1x8f64x512(t *tile)

// tile2x8f64x512 multiplies a tile of 2 rows and 8 vectors, rows of B taken at a stride.
//
//go:noescape
func tile2x8f64x512(t *tile)

// tile3x6f64x512 multiplies a tile of 3 rows and 6 vectors, rows of B taken at a stride.
//
//go:noescape
func tile3x6f64x512(t *tile)

// tile4x6f64x512 multiplies a tile of 4 rows and 6 vectors, rows of B taken at a stride.
//
//go:noescape
func tile4x6f64x512(t *tile)

// tile5x4f64x512 multiplies a tile of 5 rows and 4 vectors, rows of B taken at a stride.
//
//go:noescape
func tile5x4f64x512(t *tile)

// tile6x4f64x512 multiplies a tile of 6 rows and 4 vectors, rows of B taken at a stride.
//
//go:noescape
func tile6x4f64x512(t *tile)

// tile7x3f64x512 multiplies a tile of 7 rows and 3 vectors, rows of B taken at a stride.
//
//go:noescape
func tile7x3f64x512(t *tile)

// tile8x3f64x512 multiplies a tile of 8 rows and 3 vectors, rows of B taken at a stride.
//
//go:noescape
func tile8x3f64x512(t *tile)

// transposef64x512 writes number i of each of 8 rows, counted from byte from on, side by side at dst+i·ldd, for i < k.
//
//go:noescape
func transposef64x512(dst unsafe.Pointer, ldd int, rows *unsafe.Pointer, from, k int)

// tilesf64x512 holds the kernels by rows and vectors.
var tilesf64x512 = tileTable{
	{1, 1}:  tile1x1f64x512,
	{1, 2}:  tile1x2f64x512,
	{2, 1}:  tile2x1f64x512,
	{2, 2}:  tile2x2f64x512,
	{3, 1}:  tile3x1f64x512,
	{3, 2}:  tile3x2f64x512,
	{4, 1}:  tile4x1f64x512,
	{4, 2}:  tile4x2f64x512,
	{5, 1}:  tile5x1f64x512,
	{5, 2}:  tile5x2f64x512,
	{6, 1}:  tile6x1f64x512,
	{6, 2}:  tile6x2f64x512,
	{7, 1}:  tile7x1f64x512,
	{7, 2}:  tile7x2f64x512,
	{8, 1}:  tile8x1f64x512,
	{8, 2}:  tile8x2f64x512,
	{9, 1}:  tile9x1f64x512,
	{9, 2}:  tile9x2f64x512,
	{10, 1}: tile10x1f64x512,
	{10, 2}: tile10x2f64x512,
	{11, 1}: tile11x1f64x512,
	{11, 2}: tile11x2f64x512,
	{12, 1}: tile12x1f64x512,
	{12, 2}: tile12x2f64x512,
	{13, 1}: tile13x1f64x512,
	{13, 2}: tile13x2f64x512,
	{14, 1}: tile14x1f64x512,
	{14, 2}: tile14x2f64x512,
	{1, 8}:  tile1x8f64x512,
	{2, 8}:  tile2x8f64x512,
	{3, 6}:  tile3x6f64x512,
	{4, 6}:  tile4x6f64x512,
	{5, 4}:  tile5x4f64x512,
	{6, 4}:  tile6x4f64x512,
	{7, 3}:  tile7x3f64x512,
	{8, 3}:  tile8x3f64x512,
}

// tile1x1f32x256 multiplies a tile of 1 rows and 1 vectors, rows of B taken at a stride.
//
//go:noescape
func tile1x1f32x256(t *tile)

// tile1x2f32x256 multiplies a tile of 1 rows and 2 vectors, rows of B taken at a stride.
//
//go:noescape
func tile1x2f32x256(t *tile)

// tile2x1f32x256 multiplies a tile of 2 rows and 1 vectors, rows of B taken at a stride.
//
//go:noescape
func tile2x1f32x256(t *tile)

// tile2x2f32x256 multiplies a tile of 2 rows and 2 vectors, rows of B taken at a stride.
//
//go:noescape
func tile2x2f32x256(t *tile)

// tile3x1f32x256 multiplies a tile of 3 rows and 1 vectors, rows of B taken at a stride.
//
//go:noescape
func tile3x1f32x256(t *tile)

// tile3x2f32x256 multiplies a tile of 3 rows and 2 vectors, rows of B taken at a stride.
//
//go:noescape
func tile3x2f32x256(t *tile)

// tile4x1f32x256 multiplies a tile of 4 rows and 1 vectors, rows of B taken at a stride.
//
//go:noescape
func tile4x1f32x256(t *tile)

// tile4x2f32x256 multiplies a tile of 4 rows and 2 vectors, rows of B taken at a stride.
//
//go:noescape
func tile4x2f32x256(t *tile)

// tile5x1f32x256 multiplies a tile of 5 rows and 1 vectors, rows of B taken at a stride.
//
//go:noescape
func tile5x1f32x256(t *tile)

// tile5x2f32x256 multiplies a tile of 5 rows and 2 vectors, rows of B taken at a stride.
//
//go:noescape
func tile5x2f32x256(t *tile)

// tile6x1f32x256 multiplies a tile of 6 rows and 1 vectors, rows of B taken at a stride.
//
//go:noescape
func tile6x1f32x256(t *tile)

// tile6x2f32x256 multiplies a tile of 6 rows and 2 vectors, rows of B taken at a stride.
//
//go:noescape
func tile6x2f32x256(t *tile)

// tile1x6f32x256 multiplies a tile of 1 rows and 6 vectors, rows of B taken at a stride.
//
//go:noescape
func tile1x6f32x256(t *tile)

// tile2x4f32x256 multiplies a tile of 2 rows and 4 vectors, rows of B taken at a stride.
//
//go:noescape
func tile2x4f32x256(t *tile)

// tile3x3f32x256 multiplies a tile of 3 rows and 3 vectors, rows of B taken at a stride.
//
//go:noescape
func tile3x3f32x256(t *tile)

// direct1x1f32x256 multiplies a tile of 1 rows and 1 vectors, rows of B taken through a table of offsets.
//
//go:noescape
func direct1x1f32x256(t *tile)

// direct1x2f32x256 multiplies a tile of 1 rows and 2 vectors, rows of B taken through a table of offsets.
//
//go:noescape
func direct1x2f32x256(t *tile)

// copyPanelx256 packs k rows of at most two vectors of 32-bit words; ld is in bytes.
//
//go:noescape
func copyPanelx256(dst, src unsafe.Pointer, ld, k, words, vectors int)

// copyPanelsx256 packs k rows of panels of one or two whole vectors, panel i read at src+at[i] and written at dst+i·ldp; all in bytes.
//
//go:noescape
func copyPanelsx256(dst unsafe.Pointer, ldp int, src unsafe.Pointer, ld, k int, at *int32, panels, vectors int)

// transposef32x256 writes number i of each of 8 rows, counted from byte from on, side by side at dst+i·ldd, for i < k.
//
//go:noescape
func transposef32x256(dst unsafe.Pointer, ldd int, rows *unsafe.Pointer, from, k int)

// addTilex256 adds a float32 tile to a float64 matrix; cols is a multiple of 4, strides are in bytes.
//
//go:noescape
func addTilex256(dst unsafe.Pointer, ldd int, src unsafe.Pointer, lds, rows, cols int)

// windowx256 packs one vector of outputs for each of k offsets (32-bit, in elements) into an image.
//
//go:noescape
func windowx256(dst unsafe.Pointer, ldd int, image unsafe.Pointer, offsets unsafe.Pointer, k int, runs *[4]run)

// tilesf32x256 holds the kernels by rows and vectors.
var tilesf32x256 = tileTable{
	{1, 1}: tile1x1f32x256,
	{1, 2}: tile1x2f32x256,
	{2, 1}: tile2x1f32x256,
	{2, 2}: tile2x2f32x256,
	{3, 1}: tile3x1f32x256,
	{3, 2}: tile3x2f32x256,
	{4, 1}: tile4x1f32x256,
	{4, 2}: tile4x2f32x256,
	{5, 1}: tile5x1f32x256,
	{5, 2}: tile5x2f32x256,
	{6, 1}: tile6x1f32x256,
	{6, 2}: tile6x2f32x256,
	{1, 6}: tile1x6f32x256,
	{2, 4}: tile2x4f32x256,
	{3, 3}: tile3x3f32x256,
}

// tile1x1f64x256 multiplies a tile of 1 rows and 1 vectors, rows of B taken at a stride.
//
//go:noescape
func tile1x1f64x256(t *tile)

// tile1x2f64x256 multiplies a tile of 1 rows and 2 vectors, rows of B taken at a stride.
//
//go:noescape
func tile1x2f64x256(t *tile)

// tile2x1f64x256 multiplies a tile of 2 rows and 1 vectors, rows of B taken at a stride.
//
//go:noescape
func tile2x1f64x256(t *tile)

// tile2x2f64x256 multiplies a tile of 2 rows and 2 vectors, rows of B taken at a stride.
//
//go:noescape
func tile2x2f64x256(t *tile)

// tile3x1f64x256 multiplies a tile of 3 rows and 1 vectors, rows of B taken at a stride.
//
//go:noescape
func tile3x1f64x256(t *tile)

// tile3x2f64x256 multiplies a tile of 3 rows and 2 vectors, rows of B taken at a stride.
//
//go:noescape
func tile3x2f64x256(t *tile)

// tile4x1f64x256 multiplies a tile of 4 rows and 1 vectors, rows of B taken at a stride.
//
//go:noescape
func tile4x1f64x256(t *tile)

// tile4x2f64x256 multiplies a tile of 4 rows and 2 vectors, rows of B taken at a stride.
//
//go:noescape
func tile4x2f64x256(t *tile)

// tile5x1f64x256 multiplies a tile of 5 rows and 1 vectors, rows of B taken at a stride.
//
//go:noescape
func tile5x1f64x256(t *tile)

// tile5x2f64x256 multiplies a tile of 5 rows and 2 vectors, rows of B taken at a stride.
//
//go:noescape
func tile5x2f64x256(t *tile)

// tile6x1f64x256 multiplies a tile of 6 rows and 1 vectors, rows of B taken at a stride.
//
//go:noescape
func tile6x1f64x256(t *tile)

// tile6x2f64x256 multiplies a tile of 6 rows and 2 vectors, rows of B taken at a stride.
//
//go:noescape
func tile6x2f64x256(t *tile)

// tile1x6f64x256 multiplies a tile of 1 rows and 6 vectors, rows of B taken at a stride.
//
//go:noescape
func tile1x6f64x256(t *tile)

// tile2x4f64x256 multiplies a tile of 2 rows and 4 vectors, rows of B taken at a stride.
//
//go:noescape
func tile2x4f64x256(t *tile)

// tile3x3f64x256 multiplies a tile of 3 rows and 3 vectors, rows of B taken at a stride.
//
//go:noescape
func tile3x3f64x256(t *tile)

// transposef64x256 writes number i of each of 4 rows, counted from byte from on, side by side at dst+i·ldd, for i < k.
//
//go:noescape
func transposef64x256(dst unsafe.Pointer, ldd int, rows *unsafe.Pointer, from, k int)

// tilesf64x256 holds the kernels by rows and vectors.
var tilesf64x256 = tileTable{
	{1, 1}: tile1x1f64x256,
	{1, 2}: tile1x2f64x256,
	{2, 1}: tile2x1f64x256,
	{2, 2}: tile2x2f64x256,
	{3, 1}: tile3x1f64x256,
	{3, 2}: tile3x2f64x256,
	{4, 1}: tile4x1f64x256,
	{4, 2}: tile4x2f64x256,
	{5, 1}: tile5x1f64x256,
	{5, 2}: tile5x2f64x256,
	{6, 1}: tile6x1f64x256,
	{6, 2}: tile6x2f64x256,
	{1, 6}: tile1x6f64x256,
	{2, 4}: tile2x4f64x256,
	{3, 3}: tile3x3f64x256,
}
