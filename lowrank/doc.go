// Package lowrank compensates a compressed layer by a low-rank term: Ŵ + B·A.
//
// Given a layer's target W̃, its compressed weight Ŵ and the Gram matrix S of its
// inputs (H, or H + λI), it finds factors B (out×r) and A (r×in) of small error
//
//	‖(W̃ − Ŵ − BA)Xᵀ‖² = tr((ΔW − BA)·S·(ΔW − BA)ᵀ),  ΔW = W̃ − Ŵ.
//
// It knows no models, files or recipes. The target must be the one that Ŵ was
// solved for: after alignment W̃ = W(G+λI)ᵀ(H+λI)⁻¹ with S = H + λI, since the
// original W would undo the alignment.
//
// # Methods
//
//   - EoRA (arXiv 2410.21271) minimises that error. Its authors take the SVD of
//     ΔW·S^{1/2} and multiply by the inverse root. The left singular vectors are
//     the eigenvectors of Γ = ΔW·S·ΔWᵀ, whichever root is taken, so here B = U_r,
//     A = U_rᵀ·ΔW, without an inverse: a singular S is as good as any, and what
//     is left is tr(Γ) − tr(U_rᵀΓU_r).
//   - SVD is that of ΔW, S playing no part (ZeroQuant-V2, arXiv 2303.08302).
//   - ScaledSVD is the SVD of ΔW·diag(S)^{1/2}: each input weighs as much as its
//     root mean square. (EoRA's code has mean |x| there, called ACT-S; a Gram
//     matrix does not tell it.)
//
// All three are B = U, A = Uᵀ·ΔW with the leading eigenvectors U of ΔW·M·ΔWᵀ, M
// being S, I or diag(S). Errors are always those in S.
//
// # Grouped convolutions
//
// A grouped convolution's weight is block-diagonal as a map from all inputs to all
// outputs; a term of rank r over all its rows would join groups that read
// different inputs. It would need factors and a rank for each group, which
// layer.LowRank does not hold, and for a depthwise convolution they would cost as
// much as the weight itself. CheckGroups refuses them.
package lowrank
