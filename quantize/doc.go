// Package quantize finds integer codes for a layer's weight.
//
// Each method is a pure function of a layer.Problem and Options: Solve reads a
// weight and the moments of what the layer reads, and returns codes on a
// uniform grid together with the errors that they cause. It knows no models,
// files or recipes.
//
// # Methods
//
//   - Nearest rounds each weight to its nearest code. It needs no data.
//   - GPTQ (Frantar et al., arXiv 2210.17323) rounds the inputs of a row one
//     after the other and spreads each error over the inputs not yet rounded,
//     by the Cholesky factor of the inverse Gram matrix.
//   - AdaRound (Nagel et al., arXiv 2004.10568) learns for each weight whether
//     to round down or up. Here it works on the Gram matrix alone: no samples,
//     full batches, no noise. The learned choice, nearest rounding and GPTQ's
//     choice bounded to down or up then each start a tabu search by single
//     flips, and each row keeps the best that was met. With AdaRoundOptions.Sample
//     it is the published form instead: rows of inputs, in batches, and the
//     activation after the layer in the error.
//   - GPFQ (Lybrand and Saab, arXiv 2010.11189; Zhang et al., 2201.11113) rounds
//     the inputs of a row one after the other, each so that the error of the
//     inputs up to it is least. It takes the difference between the streams from
//     G; with Options.Align it works on W̃ and H instead. SPFQ (2309.10975) rounds
//     at random, without bias. Both also work on their authors' alphabets, and
//     know a bound of their error.
//   - Qronos (Zhang et al., arXiv 2505.11695) is GPTQ on an aligned target whose
//     first input is rounded for the weights after it as they were.
//   - HQQ (Badri and Shaji 2023) fits grids by half-quadratic splitting of
//     Σ|w − ŵ|^0.7 and rounds to nearest. It needs no data.
//   - Best, the default, runs GPTQ's pass for each row on many grids, and improves
//     the best results by descent over all codes and by fitting scales and zero
//     points to the codes.
//
// Two parts of AWQ (Lin et al., arXiv 2306.00978) go with any method: its search
// for where to clip weights (Options.Range), and ScaleInputs, which finds by what
// to multiply the inputs' weights and divide the inputs.
//
// # The objective
//
// With Ĥ = H + λI, methods minimise, row by row,
//
//	(ŵ − w̃)ᵀ Ĥ (ŵ − w̃),  w̃ = w, or with Options.Align w̃ = Ĥ⁻¹(G + λI)w
//
// which for the aligned target equals ‖Xw − X̃ŵ‖² + λ‖w − ŵ‖² up to a constant.
// λ is Options.Damping times the mean of H's diagonal, times ten as often as
// the factorization needs it. What Solution.Errors reports has no damping.
// GPFQ and SPFQ without alignment take ‖Xw − X̃ŵ‖² itself, prefix by prefix.
//
// # Dead inputs
//
// An input that was zero in every calibration row keeps its weight, rounded to
// the nearest code: nothing is known of it, so this protects rows that
// calibration did not see. (The authors' GPTQ sets such weights to zero.) It
// takes part in no feedback. This needs no special case: damping makes such an
// input independent of the others. Only GPFQ and SPFQ, as their authors do, give
// it the weight 0.
package quantize
