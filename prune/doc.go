// Package prune finds which weights of a layer go, and what the others become.
//
// It works on numbers alone: a layer's weight, the moments of what the layer
// reads, and options. It knows no models, files or recipes.
//
// # Three decisions
//
// How much each layer loses is an allocation: Allocate takes the model's layers and
// a sparsity, and returns the survivors of each, exactly as many in all as the
// sparsity leaves. Methods that look at weights read one layer at a time.
//
// Which weights go is a Pattern with a Scope: Select takes a score per weight and
// returns a layer.Mask. MagnitudeScores, WandaScores and SaliencyScores make scores.
//
// What the survivors become is a solver's work.
//
// # Scores
//
// A score is the size of a weight as a criterion sees it: |w| for magnitude,
// |w|·‖x‖₂ for Wanda (Sun et al., arXiv 2306.11695, §3), |w|/√[H⁻¹]_jj for optimal
// brain surgery (Frantar and Alistarh, arXiv 2208.11580, §3). The square of such a
// score is the error that pruning the weight causes as far as the criterion knows,
// so the squares add up over blocks. Scores are finite and not negative.
//
// # Ties and counts
//
// Among equal scores, the weight with the lower index (row-major) goes first, and
// over several layers that of the earlier layer. A count is never off by ties:
// sparsity s of n weights prunes s·n of them, rounded half to even, and a layer
// never loses its last weight. What was kept for that reason alone is reported.
package prune
