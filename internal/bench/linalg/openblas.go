//go:build openblas

package main

/*
#cgo LDFLAGS: -lopenblas
#include <cblas.h>

// LAPACK's Fortran interface: every argument is a pointer.
extern void dpotrf_(char *uplo, int *n, double *a, int *lda, int *info);
extern void dpotri_(char *uplo, int *n, double *a, int *lda, int *info);
extern void dtrtri_(char *uplo, char *diag, int *n, double *a, int *lda, int *info);
extern void dsyevd_(char *jobz, char *uplo, int *n, double *a, int *lda, double *w,
	double *work, int *lwork, int *iwork, int *liwork, int *info);
extern void dgeqrf_(int *m, int *n, double *a, int *lda, double *tau, double *work, int *lwork, int *info);
extern void dorgqr_(int *m, int *n, int *k, double *a, int *lda, double *tau, double *work, int *lwork, int *info);

static int potrf(char uplo, int n, double *a, int lda) { int info; dpotrf_(&uplo, &n, a, &lda, &info); return info; }
static int potri(char uplo, int n, double *a, int lda) { int info; dpotri_(&uplo, &n, a, &lda, &info); return info; }
static int trtri(char uplo, int n, double *a, int lda) { int info; char d = 'N'; dtrtri_(&uplo, &d, &n, a, &lda, &info); return info; }
static int syevd(int n, double *a, int lda, double *w, double *work, int lwork, int *iwork, int liwork) {
	int info; char v = 'V', u = 'L';
	dsyevd_(&v, &u, &n, a, &lda, w, work, &lwork, iwork, &liwork, &info);
	return info;
}
static int qr(int m, int n, double *a, int lda, double *tau, double *work, int lwork) {
	int info; dgeqrf_(&m, &n, a, &lda, tau, work, &lwork, &info);
	if (info == 0) dorgqr_(&m, &n, &n, a, &lda, tau, work, &lwork, &info);
	return info;
}
*/
import "C"

import (
	"fmt"
	"unsafe"

	"gonum.org/v1/gonum/blas/blas64"
)

// Fortran's matrices are columns first: the lower triangle of ours is its upper.
func init() {
	peer = &lapack{
		threads: func(n int) { C.openblas_set_num_threads(C.int(n)) },
		cholesky: func(a blas64.General) error {
			return info("dpotrf", C.potrf('U', C.int(a.Rows), data(a), C.int(a.Stride)))
		},
		inverseLower: func(a blas64.General) error {
			return info("dtrtri", C.trtri('U', C.int(a.Rows), data(a), C.int(a.Stride)))
		},
		// The upper factor of the inverse as GPTQ's code has it: factor, inverse,
		// factor of that.
		inverseUpper: func(a blas64.General) error {
			n, lda := C.int(a.Rows), C.int(a.Stride)
			if err := info("dpotrf", C.potrf('L', n, data(a), lda)); err != nil {
				return err
			}
			if err := info("dpotri", C.potri('L', n, data(a), lda)); err != nil {
				return err
			}
			return info("dpotrf", C.potrf('L', n, data(a), lda))
		},
		eigen: func(a blas64.General) error {
			n := a.Rows
			w, work, iwork := make([]float64, n), make([]float64, 1+6*n+2*n*n), make([]C.int, 3+5*n)
			return info("dsyevd", C.syevd(C.int(n), data(a), C.int(a.Stride), (*C.double)(&w[0]),
				(*C.double)(&work[0]), C.int(len(work)), &iwork[0], C.int(len(iwork))))
		},
		// A columns-first matrix of the transposed shape: the same numbers of
		// rows and columns, other elements.
		qr: func(a blas64.General) error {
			tau, work := make([]float64, a.Cols), make([]float64, 64*a.Cols)
			return info("dgeqrf", C.qr(C.int(a.Rows), C.int(a.Cols), data(a), C.int(a.Rows),
				(*C.double)(&tau[0]), (*C.double)(&work[0]), C.int(len(work))))
		},
		gemm: func(a, b, c blas64.General) error {
			C.cblas_dgemm(C.CblasRowMajor, C.CblasNoTrans, C.CblasNoTrans, C.int(c.Rows), C.int(c.Cols), C.int(a.Cols),
				1, data(a), C.int(a.Stride), data(b), C.int(b.Stride), 0, data(c), C.int(c.Stride))
			return nil
		},
	}
}

func data(a blas64.General) *C.double { return (*C.double)(unsafe.Pointer(&a.Data[0])) }

func info(name string, code C.int) error {
	if code != 0 {
		return fmt.Errorf("%s returns %d", name, code)
	}
	return nil
}
