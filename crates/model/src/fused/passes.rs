//! Loops over the numbers of a row, which the compiler turns into the widest vectors that the processor has.
//! Sums are in sixteen parts whatever it has, and nothing is contracted, so results do not depend on the
//! processor.

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

    /// With g = d · weight and r = 1 / √(mean(x²) + ε): `r · (g - x · r² · mean(g · x))`; adds `d · x · r`
    /// to `d_weight`.
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
    let numerator = if x >= 0.0 { 1.0 } else { small };
    numerator / (1.0 + small)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Of f32 sums, relative to the largest number.
    const ROUNDING: f64 = 2e-6;

    fn numbers(count: usize, seed: f32) -> Vec<f32> {
        (0..count).map(|index| (index as f32 * 0.7 + seed).sin() * 3.0).collect()
    }

    fn assert_near(found: &[f32], expected: impl Iterator<Item = f64>) {
        let expected: Vec<f64> = expected.collect();
        assert_eq!(found.len(), expected.len());
        let largest = expected.iter().fold(1.0f64, |largest, x| largest.max(x.abs()));
        for (&found, expected) in found.iter().zip(expected) {
            assert!((f64::from(found) - expected).abs() <= ROUNDING * largest, "{found} for {expected}");
        }
    }

    #[test]
    fn a_norm_and_its_gradients_are_those_of_plain_sums() {
        for width in [1, 2, 15, 16, 33, 64, 257] {
            let [x, weight, d] = [0.0, 1.0, 2.0].map(|seed| numbers(width, seed));
            let epsilon = 1e-5;
            let wide = |numbers: &[f32]| numbers.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
            let [x64, weight64, d64] = [&x, &weight, &d].map(|of| wide(of));
            let mean = x64.iter().map(|x| x * x).sum::<f64>() / width as f64 + f64::from(epsilon);
            let root = mean.sqrt().recip();
            let mut output = vec![0.0; width];
            rms_norm(&x, &weight, epsilon, &mut output);
            assert_near(&output, x64.iter().zip(&weight64).map(|(x, weight)| x * root * weight));

            let (mut d_x, mut d_weight) = (vec![0.0; width], vec![1.0; width]);
            rms_norm_backward(&x, &weight, epsilon, &d, &mut d_x, Some(&mut d_weight));
            let g: Vec<f64> = d64.iter().zip(&weight64).map(|(d, weight)| d * weight).collect();
            let dot = g.iter().zip(&x64).map(|(g, x)| g * x).sum::<f64>() / width as f64;
            assert_near(&d_x, g.iter().zip(&x64).map(|(g, x)| root * (g - x * root * root * dot)));
            assert_near(&d_weight, d64.iter().zip(&x64).map(|(d, x)| 1.0 + d * x * root));
        }
    }

    #[test]
    fn pairs_are_turned_and_turned_back() {
        for (head, turned, scale) in
            [(2, 2, 1.0), (7, 4, 0.5), (32, 32, 0.25), (80, 20, 2.0), (256, 256, 1.0)]
        {
            let (x, half) = (numbers(3 * head, 0.0), turned / 2);
            let angle = |i: usize| f64::from(numbers(head, 5.0)[i % half]);
            let cos: Vec<f32> = (0..head).map(|i| angle(i).cos() as f32).collect();
            let sin: Vec<f32> = (0..head).map(|i| angle(i).sin() as f32).collect();
            let expected = |sign: f64| {
                let (x, angle) = (x.clone(), &angle);
                (0..3 * head).map(move |index| {
                    let (start, i) = (index / head * head, index % head);
                    let at = |i: usize| f64::from(x[start + i]);
                    let number = match i {
                        i if i < half => at(i) * angle(i).cos() - sign * at(i + half) * angle(i).sin(),
                        i if i < turned => at(i) * angle(i).cos() + sign * at(i - half) * angle(i).sin(),
                        i => at(i),
                    };
                    number * f64::from(scale)
                })
            };
            let mut output = vec![0.0; 3 * head];
            turn(&x, &mut output, [&cos, &sin], turned, scale, Turn::Forward);
            assert_near(&output, expected(1.0));
            turn(&x, &mut output, [&cos, &sin], turned, scale, Turn::Back);
            assert_near(&output, expected(-1.0));
        }
    }

    #[test]
    fn a_gate_and_its_gradients_are_those_of_plain_numbers() {
        for width in [1, 16, 37, 300] {
            for scale in [1.0, 40.0] {
                let gate: Vec<f32> = numbers(width, 0.0).into_iter().map(|x| x * scale).collect();
                let [up, d] = [1.0, 2.0].map(|seed| numbers(width, seed));
                let [mut output, mut d_gate, mut d_up] = [(); 3].map(|()| vec![0.0; width]);
                gated(&gate, &up, &mut output);
                gated_gradient(&gate, &up, &d, &mut d_gate, &mut d_up);
                let sigmoid = |x: f32| 1.0 / (1.0 + (-f64::from(x)).exp());
                let silu = |x: f32| f64::from(x) * sigmoid(x);
                let slope = |x: f32| sigmoid(x) + silu(x) * (1.0 - sigmoid(x));
                let all = || gate.iter().zip(&up).zip(&d);
                assert_near(&output, all().map(|((&gate, &up), _)| silu(gate) * f64::from(up)));
                assert_near(&d_up, all().map(|((&gate, _), &d)| silu(gate) * f64::from(d)));
                assert_near(
                    &d_gate,
                    all().map(|((&gate, &up), &d)| slope(gate) * f64::from(d) * f64::from(up)),
                );
            }
        }
    }
}
