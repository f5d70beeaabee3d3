package search

import (
	"errors"
	"fmt"
)

// What a *BudgetError wraps.
var (
	ErrBudgetTooSmall = errors.New("the budget is below the smallest possible size")
	ErrBudgetTooLarge = errors.New("the budget is above the largest possible size")
)

// BudgetError says that no candidate can meet a budget, or that every one does, so
// that there is nothing to search.
type BudgetError struct {
	Bytes    int64 // the budget
	Smallest int64 // what all genes at their cheapest levels take, with the rest
	Largest  int64 // the same at the dearest levels
}

func (e *BudgetError) Error() string {
	if errors.Is(e, ErrBudgetTooSmall) {
		return fmt.Sprintf("search: a budget of %d bytes is too small: the smallest possible size is %d", e.Bytes, e.Smallest)
	}
	return fmt.Sprintf("search: a budget of %d bytes needs no search: the largest possible size is %d, take the dearest levels or a budget up to that", e.Bytes, e.Largest)
}

func (e *BudgetError) Unwrap() error {
	if e.Bytes < e.Smallest {
		return ErrBudgetTooSmall
	}
	return ErrBudgetTooLarge
}

// SpaceError names a gene or a level that makes no space.
type SpaceError struct {
	Gene    string // empty: the space as a whole
	Problem string
}

func (e *SpaceError) Error() string {
	if e.Gene == "" {
		return "search: " + e.Problem
	}
	return fmt.Sprintf("search: gene %s: %s", e.Gene, e.Problem)
}

// CandidateError says why a candidate that was given is none of the space's.
type CandidateError struct{ Problem string }

func (e *CandidateError) Error() string { return "search: the candidate " + e.Problem }

// OptionError names an option that is out of its range.
type OptionError struct {
	Field   string // the field of Options, or the parameter
	Value   any
	Allowed string // what would be accepted
}

func (e *OptionError) Error() string {
	return fmt.Sprintf("search: %s is %v, want %s", e.Field, e.Value, e.Allowed)
}

// TableError says why a table of errors does not fit its space.
type TableError struct{ Problem string }

func (e *TableError) Error() string { return "search: the table of errors " + e.Problem }

// FitnessError says that a Fitness returned what cannot be compared.
type FitnessError struct {
	Batch   Batch
	Problem string
}

func (e *FitnessError) Error() string {
	return fmt.Sprintf("search: fitness in generation %d, stage %d: %s", e.Batch.Generation, e.Batch.Stage, e.Problem)
}
