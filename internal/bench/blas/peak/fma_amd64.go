package peak

//go:noescape
func fma256(n int)

//go:noescape
func fma512(n int)

// fmaLoop runs n turns and returns how many float32 operations each has.
func fmaLoop(n int, avx512 bool) int {
	if avx512 {
		fma512(n)
		return 24 * 16 * 2
	}
	fma256(n)
	return 12 * 8 * 2
}
