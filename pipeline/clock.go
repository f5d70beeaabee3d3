package pipeline

import (
	"time"

	"github.com/fettle-dev/fettle/record"
)

// clock shares out a run's time among its stages, and stamps events.
type clock struct {
	began, since time.Time
	current      Stage
	order        []Stage
	seconds      map[Stage]float64
	bytes        map[Stage]int64
	events       func(Event)
}

func newClock(events func(Event)) clock {
	now := time.Now()
	return clock{began: now, since: now, seconds: map[Stage]float64{}, bytes: map[Stage]int64{}, events: events}
}

// enter ends the current stage and begins another.
func (c *clock) enter(s Stage) {
	now := time.Now()
	if c.current != "" {
		c.seconds[c.current] += now.Sub(c.since).Seconds()
	}
	if _, ok := c.seconds[s]; !ok {
		c.order = append(c.order, s)
		c.seconds[s] = 0
	}
	if s != c.current {
		c.current = s
		c.emit(Event{})
	}
	c.since = now
}

func (c *clock) addBytes(s Stage, n int64) { c.bytes[s] += n }

// emit sends an event of the current stage.
func (c *clock) emit(e Event) {
	e.Stage, e.Elapsed = c.current, time.Since(c.began)
	c.events(e)
}

// stages returns the time of each stage so far, and of the whole run.
func (c *clock) stages() ([]record.Stage, float64) {
	now := time.Now()
	c.seconds[c.current] += now.Sub(c.since).Seconds()
	c.since = now
	var stages []record.Stage
	for _, s := range c.order {
		stages = append(stages, record.Stage{Name: string(s), Seconds: c.seconds[s], Bytes: c.bytes[s]})
	}
	return stages, now.Sub(c.began).Seconds()
}
