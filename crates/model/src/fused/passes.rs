//! Loops over the numbers of a row, which the compiler turns into the widest vectors that the processor has. Sums are in sixteen parts whatever
//! it has, and nothing is contracted, so results do not depend on the processor.

use pulp::NullaryFnOnce;
use softshard_products::{exp_non_positive, widest};

const LANES: usize = 16;

/// Functions that are compiled for several widths of vectors; the widest is chosen where they run.
macro_rules! wide {
    ($($(#[$meta:meta])* fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $output:ty)? $body:block)*) => {$(
        $(#[$meta])*
        pub(super) fn $name<'a>($($argument: $type),*) $(-> $output)? {
            struct Pass<'a>($($type,)* std::marker::PhantomData<&'a ()>);
            impl<'a> NullaryFnOnce for Pass<'a> {
                type Output = wide!(@output $($output)?);

                #[inline(always)]
                fn call(self) -> Self::Output {
                    let Self($($argument,)* _) = self;
                    $body
                }
            }
            widest(Pass($($argument,)* std::marker::PhantomData))
        }
    )*};
    (@output) => { () };
    (@output $output:ty) => { $output };
}

/// Which way a pair is turned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    Forward,
    Back,
}

wide! {
    /// `x / √(mean(x²) + ε) · weight`.
    fn rms_norm(x: &'a [f32], weight: &'a [f32], epsilon: f32, output: &'a mut [f32]) {
        let inverse = inverse_root(x, epsilon);
        for ((output, x), weight) in output.iter_mut().zip(x).zip(weight) {
            *output = x * inverse * weight;
        }
    }

    /// With g = d · weight and r = 1 / √(mean(x²) + ε): `r · (g - x · r² · mean(g · x))`; adds `d · x · r` to `d_weight`.
    fn rms_norm_backward(
        x: &'a [f32],
        weight: &'a [f32],
        epsilon: f32,
        d: &'a [f32],
        d_x: &'a mut [f32],
        d_weight: Option<&'a mut [f32]>,
    ) {
        let inverse = inverse_root(x, epsilon);
        for ((d_x, d), weight) in d_x.iter_mut().zip(d).zip(weight) {
            *d_x = d * weight;
        }
        let factor = dot(d_x, x) / (x.len() as f32) * inverse * inverse;
        for (d_x, x) in d_x.iter_mut().zip(x) {
            *d_x = (*d_x - x * factor) * inverse;
        }
        if let Some(d_weight) = d_weight {
            for ((sum, d), x) in d_weight.iter_mut().zip(d).zip(x) {
                *sum += d * x * inverse;
            }
        }
    }

    /// The heads of a token, of whose first `turned` numbers each half is turned with the other.
    fn turn(
        x: &'a [f32],
        output: &'a mut [f32],
        angles: [&'a [f32]; 2],
        turned: usize,
        scale: f32,
        turn: Turn,
    ) {
        let ([cos, sin], half) = (angles, turned / 2);
        for (output, x) in output.chunks_exact_mut(cos.len()).zip(x.chunks_exact(cos.len())) {
            let (first, rest) = output.split_at_mut(half);
            let (second, still) = rest.split_at_mut(half);
            let (x_first, x_second) = (&x[..half], &x[half..turned]);
            let (cos_first, cos_second) = (&cos[..half], &cos[half..turned]);
            let (sin_first, sin_second) = (&sin[..half], &sin[half..turned]);
            for i in 0..half {
                let (a, b) = match turn {
                    Turn::Forward => (-x_second[i] * sin_first[i], x_first[i] * sin_second[i]),
                    Turn::Back => (x_second[i] * sin_second[i], -x_first[i] * sin_first[i]),
                };
                first[i] = (x_first[i] * cos_first[i] + a) * scale;
                second[i] = (x_second[i] * cos_second[i] + b) * scale;
            }
            for (still, x) in still.iter_mut().zip(&x[turned..]) {
                *still = x * scale;
            }
        }
    }

    /// `silu(gate) · up`.
    fn gated(gate: &'a [f32], up: &'a [f32], output: &'a mut [f32]) {
        for ((output, &gate), up) in output.iter_mut().zip(gate).zip(up) {
            *output = gate * sigmoid(gate) * up;
        }
    }

    /// The gradients by gate and by up.
    fn gated_gradient(
        gate: &'a [f32],
        up: &'a [f32],
        d: &'a [f32],
        d_gate: &'a mut [f32],
        d_up: &'a mut [f32],
    ) {
        let outputs = d_gate.iter_mut().zip(d_up);
        for (((d_gate, d_up), (&gate, up)), d) in outputs.zip(gate.iter().zip(up)).zip(d) {
            let sigmoid = sigmoid(gate);
            let silu = gate * sigmoid;
            *d_up = d * silu;
            *d_gate = d * up * (sigmoid + silu * (1.0 - sigmoid));
        }
    }
}

/// Never overflows: the exponential is at most 1.
#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    let small = exp_non_positive(-x.abs());
    let of_negative = small / (1.0 + small);
    if x >= 0.0 { 1.0 / (1.0 + small) } else { of_negative }
}

#[inline(always)]
fn inverse_root(x: &[f32], epsilon: f32) -> f32 {
    1.0 / (dot(x, x) / (x.len() as f32) + epsilon).sqrt()
}

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}
