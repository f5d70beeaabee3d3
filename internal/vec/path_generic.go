//go:build !amd64 || purego

package vec

import "os"

var path = choose(os.Getenv("FETTLE_KERNELS"), generic)
