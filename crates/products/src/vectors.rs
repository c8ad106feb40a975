//! Loops over the widest vectors that the processor has.

use pulp::{Arch, NullaryFnOnce};

/// Runs a pass that was compiled for the widest vectors of this processor: AVX-512 where `gemm` has it,
/// AVX2, NEON, or whatever every processor of its kind has.
#[inline(always)]
pub fn widest<Pass: NullaryFnOnce>(pass: Pass) -> Pass::Output {
    let arch = Arch::new();
    // Among the variants only with a feature that nothing else here needs, and all of Burn would be compiled
    // anew for.
    #[cfg(target_arch = "x86_64")]
    if matches!(arch, Arch::Scalar)
        && let Some(avx2) = pulp::x86::V3::try_new()
    {
        return avx2.vectorize(pass);
    }
    arch.dispatch(pass)
}
