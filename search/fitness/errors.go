package fitness

import "fmt"

// Error says why a model and its data cannot be measured.
type Error struct {
	Problem string
	Err     error // the cause, where there is one
}

func (e *Error) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("fitness: %s: %v", e.Problem, e.Err)
	}
	return "fitness: " + e.Problem
}

func (e *Error) Unwrap() error { return e.Err }

func problem(format string, args ...any) error { return &Error{Problem: fmt.Sprintf(format, args...)} }

// LevelError says which level could not be read or does not fit.
type LevelError struct {
	Gene, Level int
	Err         error
}

func (e *LevelError) Error() string {
	return fmt.Sprintf("fitness: level %d of gene %d: %v", e.Level, e.Gene, e.Err)
}

func (e *LevelError) Unwrap() error { return e.Err }

// SamplesError says that a batch cannot be drawn.
type SamplesError struct{ Asked, Available int }

func (e *SamplesError) Error() string {
	return fmt.Sprintf("fitness: %d samples asked for, %d are there: ask for 1 to that many, or give more data", e.Asked, e.Available)
}
