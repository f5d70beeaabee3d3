//go:build !amd64

package peak

var sink [4]float32

// fmaLoop runs n turns and returns how many float32 operations each has.
func fmaLoop(n int, _ bool) int {
	var a, b, c, d float32
	for range n {
		a, b, c, d = a*0.5+1, b*0.5+1, c*0.5+1, d*0.5+1
	}
	sink = [4]float32{a, b, c, d}
	return 8
}
