package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/fettle-dev/fettle/pipeline"
)

// progress turns a run's events into text: one line that is drawn over on a
// terminal, plain lines elsewhere.
type progress struct {
	w        io.Writer
	quiet    bool
	terminal bool
	drawn    bool // a line stands on the terminal
	solved   int  // layers that took work, not found on disk
	line     string
	lastSlow time.Duration
}

func newProgress(w io.Writer, quiet bool) *progress {
	p := &progress{w: w, quiet: quiet}
	if f, ok := w.(*os.File); ok {
		info, err := f.Stat()
		p.terminal = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	return p
}

func (p *progress) event(e pipeline.Event) {
	if p.quiet {
		return
	}
	switch {
	case e.Warning != "":
		p.println("warning: " + e.Warning)
	case e.Search != nil:
		p.searched(e)
	case e.Layer != "":
		p.layer(e)
	case e.Stage == pipeline.StageSearch && e.Total > 0:
		p.status(fmt.Sprintf("search: %d of %d candidates measured", e.Done, e.Total))
	case e.Stage == pipeline.StageAllocate && e.Total > 0:
		p.status(fmt.Sprintf("allocate: %d of %d layers measured", e.Done, e.Total))
	case e.Stage == pipeline.StageEvaluate && e.Total > 0:
		p.evaluated(e)
	case p.terminal && p.line != "":
		p.draw(fmt.Sprintf("%s  [%s]", p.line, e.Stage))
	case e.Stage == pipeline.StageWrite || e.Stage == pipeline.StageVerify:
		p.status(string(e.Stage))
	}
}

func (p *progress) layer(e pipeline.Event) {
	if !e.Cached {
		p.solved++
	}
	text := fmt.Sprintf("[%d/%d] %s", e.Done, e.Total, e.Layer)
	if e.Stage == pipeline.StageRemove {
		text = fmt.Sprintf("[%d/%d] remove %s", e.Done, e.Total, e.Layer)
	}
	if e.RelativeError >= 0 {
		text += fmt.Sprintf("  relative error %.3g", e.RelativeError)
	}
	if e.Cached {
		text += "  (reused)"
	}
	if left := e.Total - e.Done; left > 0 && p.solved > 0 && !e.Cached {
		each := e.Elapsed / time.Duration(e.Done)
		text += fmt.Sprintf("  %s, about %s left", e.Elapsed.Round(time.Second), (each * time.Duration(left)).Round(time.Second))
	}
	p.status(text)
}

// searched says how far a search is: on a terminal always, else where something was
// found, and now and then.
func (p *progress) searched(e pipeline.Event) {
	s := e.Search
	text := fmt.Sprintf("search for %s: generation %d/%d, %d of %d bytes", s.Fit, s.Generation, s.Generations, s.Bytes, s.Budget)
	if s.Fitness >= 0 {
		text += fmt.Sprintf(", fitness %.4g", s.Fitness)
	}
	if s.Left > 0 {
		text += fmt.Sprintf(", about %s left", s.Left.Round(time.Second))
	}
	if p.terminal || s.Improved || s.Generation == 0 || s.Generation == s.Generations || e.Elapsed-p.lastSlow > 5*time.Second {
		p.lastSlow = e.Elapsed
		p.status(text)
	}
}

// evaluated says how far evaluation is: on a terminal always, else now and
// then.
func (p *progress) evaluated(e pipeline.Event) {
	text := fmt.Sprintf("evaluate %d/%d samples", e.Done, e.Total)
	if p.terminal {
		p.line = text
		p.draw(text)
		return
	}
	if e.Elapsed-p.lastSlow > 5*time.Second {
		p.lastSlow = e.Elapsed
		fmt.Fprintln(p.w, text)
	}
}

func (p *progress) status(text string) {
	p.line = text
	if p.terminal {
		p.draw(text)
		return
	}
	fmt.Fprintln(p.w, text)
}

// draw replaces the terminal's current line.
func (p *progress) draw(text string) {
	const width = 100
	if runes := []rune(text); len(runes) > width {
		text = string(runes[:width-1]) + "…"
	}
	fmt.Fprintf(p.w, "\r\x1b[K%s", text)
	p.drawn = true
}

func (p *progress) println(text string) {
	if p.drawn {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.drawn = false
	}
	fmt.Fprintln(p.w, text)
}

// close clears the drawn line, so that what follows starts on a clean one.
func (p *progress) close() {
	if p.drawn {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.drawn = false
	}
}
