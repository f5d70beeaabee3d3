// Package hugepage asks the system to back large slices by huge pages, where it
// gives these only when asked: products that walk hundreds of megabytes spend
// much of their time on page tables otherwise.
package hugepage
