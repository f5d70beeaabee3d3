// Package pool bounds how many goroutines compute at once.
//
// One pool serves a whole run: the pipeline solves layers with it, a solver
// splits rows with it, a matrix product splits tiles with it. Calls nest. The
// caller of For always works itself and only borrows idle workers, so nesting
// neither deadlocks nor starts more goroutines than the pool has workers.
//
// A task's result must not depend on which worker runs it or on how many there
// are: tasks write disjoint outputs, each computed in one fixed order.
package pool

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/semaphore"
)

// Pool is a set of workers. The zero value is not usable; call New.
type Pool struct {
	workers int
	idle    *semaphore.Weighted
}

// New returns a pool of the given number of workers, counting the caller of
// For. Zero or less means one for each processor.
func New(workers int) *Pool {
	if workers <= 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	return &Pool{workers: workers, idle: semaphore.NewWeighted(int64(workers - 1))}
}

// Workers returns the number of workers.
func (p *Pool) Workers() int { return p.workers }

// For calls task(0) … task(n-1), each once, on the caller and on workers that
// are idle. It returns when all calls have returned. When ctx is cancelled or
// a task fails, no further task starts, and the error of the lowest-numbered
// failed task is returned (or the context's).
func (p *Pool) For(ctx context.Context, n int, task func(i int) error) error {
	r := run{ctx: ctx, n: int64(n), task: task, failed: int64(n)}
	r.work(p, true)
	r.helpers.Wait()
	if r.err != nil {
		return r.err
	}
	return ctx.Err()
}

type run struct {
	ctx     context.Context
	n       int64
	task    func(i int) error
	next    atomic.Int64
	stop    atomic.Bool
	helpers sync.WaitGroup

	mu     sync.Mutex
	failed int64
	err    error
}

// work takes tasks until none is left. Only the caller's own goroutine
// recruits, so that WaitGroup.Add never races with Wait.
func (r *run) work(p *Pool, recruit bool) {
	for recruited := int64(0); ; {
		for recruit && recruited < r.n-1-r.next.Load() && p.idle.TryAcquire(1) {
			recruited++
			r.helpers.Add(1)
			go func() {
				defer r.helpers.Done()
				defer p.idle.Release(1)
				r.work(p, false)
			}()
		}
		if r.stop.Load() || r.ctx.Err() != nil {
			return
		}
		i := r.next.Add(1) - 1
		if i >= r.n {
			return
		}
		if err := r.task(int(i)); err != nil {
			r.fail(i, err)
			return
		}
	}
}

func (r *run) fail(i int64, err error) {
	r.stop.Store(true)
	r.mu.Lock()
	defer r.mu.Unlock()
	if i < r.failed {
		r.failed, r.err = i, err
	}
}
