// Package search chooses a compression level for each part of a model within a
// budget in bytes.
//
// It works on numbers alone: a Space of genes with the bytes of each level, and
// functions that say how good a candidate is. It knows no models, files or recipes,
// nor how a level is made or run.
//
// # Words
//
// A gene is what gets one level: a layer, or a fusion group of layers. A level is one
// way to compress it. A Candidate is one level for each gene. A fitness is a number
// that is better when lower.
//
// # Which to use
//
// Evolve is EvoPress (Sieberling et al., arXiv 2410.14649): it measures whole
// candidates, so it needs no assumption on how layers' errors combine, and many
// evaluations. SumOfErrors and Greedy take an error for each gene and level and
// assume that errors add up; they cost nearly nothing and make good starts
// (Options.Start). Uniform and Random are what a search has to beat.
//
// Every candidate that is evaluated or returned fits the budget. Equal seeds give
// equal results, whatever the order or number of workers in which a Fitness evaluates
// its candidates.
package search
