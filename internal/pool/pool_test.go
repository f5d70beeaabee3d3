package pool

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"
)

func TestForCallsEachTaskOnce(t *testing.T) {
	for _, workers := range []int{1, 2, 7} {
		for _, n := range []int{0, 1, 2, 100} {
			p := New(workers)
			counts := make([]atomic.Int32, n)
			if err := p.For(context.Background(), n, func(i int) error { counts[i].Add(1); return nil }); err != nil {
				t.Fatal(err)
			}
			for i := range counts {
				if c := counts[i].Load(); c != 1 {
					t.Errorf("%d workers: task %d of %d ran %d times", workers, i, n, c)
				}
			}
		}
	}
}

func TestForNestsWithinTheBound(t *testing.T) {
	const workers = 3
	p := New(workers)
	var running, most atomic.Int32
	err := p.For(context.Background(), 4, func(int) error {
		return p.For(context.Background(), 4, func(int) error {
			now := running.Add(1)
			for m := most.Load(); now > m && !most.CompareAndSwap(m, now); m = most.Load() {
			}
			time.Sleep(time.Millisecond)
			running.Add(-1)
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	if m := most.Load(); m > workers || m < 2 {
		t.Errorf("%d tasks ran at once on %d workers", m, workers)
	}
}

func TestForReturnsTheLowestError(t *testing.T) {
	p := New(4)
	started := make(chan struct{})
	err := p.For(context.Background(), 2, func(i int) error {
		if i == 0 {
			<-started // fails last, but comes first
			return fmt.Errorf("task %d", i)
		}
		close(started)
		return fmt.Errorf("task %d", i)
	})
	if err == nil || err.Error() != "task 0" {
		t.Errorf("got %v", err)
	}
}

func TestForStops(t *testing.T) {
	boom := errors.New("boom")
	var ran atomic.Int32
	err := New(1).For(context.Background(), 10, func(i int) error {
		ran.Add(1)
		if i == 2 {
			return boom
		}
		return nil
	})
	if !errors.Is(err, boom) || ran.Load() != 3 {
		t.Errorf("error %v after %d tasks", err, ran.Load())
	}
	ctx, cancel := context.WithCancel(context.Background())
	err = New(2).For(ctx, 1000, func(i int) error {
		if i == 5 {
			cancel()
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
