//! What is done to every logit of a row, in loops that the compiler turns into the widest vectors that the processor has.
//!
//! Legend: V vocabulary. Lanes are fixed, and products and sums are not contracted, so results do not depend on the processor.

use pulp::NullaryFnOnce;
use softshard_products::{exp_non_positive, widest};

/// Numbers that are looked at together: their largest one is kept, and their f32 sums are added in f64.
pub(crate) const BLOCK: usize = 64;

/// Independent accumulators: the largest vectors.
const LANES: usize = 16;

/// The largest number of each block, into `maxima`, and of all; NaN counts for nothing, and -inf is the largest of none.
pub(crate) fn block_maxima(values: &[f32], maxima: &mut Vec<f32>) -> f32 {
    struct Pass<'a>(&'a [f32], &'a mut Vec<f32>);
    impl NullaryFnOnce for Pass<'_> {
        type Output = f32;

        #[inline(always)]
        fn call(self) -> f32 {
            let Self(values, maxima) = self;
            maxima.clear();
            maxima.reserve(values.len().div_ceil(BLOCK));
            let (blocks, rest) = values.as_chunks::<BLOCK>();
            let mut largest = f32::NEG_INFINITY;
            for block in blocks {
                let maximum = maximum_of_block(block);
                maxima.push(maximum);
                largest = greater(largest, maximum);
            }
            if !rest.is_empty() {
                let maximum = maximum_of_block(&padded(rest));
                maxima.push(maximum);
                largest = greater(largest, maximum);
            }
            largest
        }
    }
    widest(Pass(values, maxima))
}

/// Sums over logits relative to the largest one of their row, m.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sums {
    /// Σ exp(z - m).
    total: [f64; LANES],
    /// Σ exp(z - m)·(z - m).
    weighted: [f64; LANES],
}

impl Sums {
    /// Adds logits that are at most `largest`, or NaN, which makes the total one.
    pub(crate) fn add(&mut self, logits: &[f32], largest: f32) {
        struct Pass<'a>(&'a mut Sums, &'a [f32], f32);
        impl NullaryFnOnce for Pass<'_> {
            type Output = ();

            #[inline(always)]
            fn call(self) {
                let Self(sums, logits, largest) = self;
                let (blocks, rest) = logits.as_chunks::<BLOCK>();
                for block in blocks {
                    sums.add_block(block, largest);
                }
                if !rest.is_empty() {
                    sums.add_block(&padded(rest), largest);
                }
            }
        }
        widest(Pass(self, logits, largest));
    }

    #[inline(always)]
    fn add_block(&mut self, block: &[f32; BLOCK], largest: f32) {
        let (mut e_sums, mut products) = ([0.0_f32; LANES], [0.0_f32; LANES]);
        for logits in block.as_chunks::<LANES>().0 {
            for lane in 0..LANES {
                let distance = logits[lane] - largest;
                let e = exp_non_positive(distance);
                e_sums[lane] += e;
                // 0 · (-inf) would be NaN; a NaN logit still reaches the total.
                products[lane] += if e > 0.0 { e * distance } else { 0.0 };
            }
        }
        for lane in 0..LANES {
            self.total[lane] += f64::from(e_sums[lane]);
            self.weighted[lane] += f64::from(products[lane]);
        }
    }

    /// Adds some logits that are scattered.
    pub(crate) fn add_each(&mut self, logits: impl Iterator<Item = f32>, largest: f32) {
        for logit in logits {
            let distance = logit - largest;
            let e = f64::from(exp_non_positive(distance));
            self.total[0] += e;
            self.weighted[0] += if e > 0.0 { e * f64::from(distance) } else { 0.0 };
        }
    }

    /// Σ exp(z - m).
    pub(crate) fn total(&self) -> f64 {
        self.total.iter().sum()
    }

    /// Σ exp(z - m)·(z - m).
    pub(crate) fn weighted(&self) -> f64 {
        self.weighted.iter().sum()
    }
}

/// Σ exp((z - largest) · inverse_temperature).
pub(crate) fn partition(logits: &[f32], largest: f32, inverse_temperature: f32) -> f64 {
    struct Pass<'a>(&'a [f32], f32, f32);
    impl NullaryFnOnce for Pass<'_> {
        type Output = f64;

        #[inline(always)]
        fn call(self) -> f64 {
            let Self(logits, largest, inverse_temperature) = self;
            let (blocks, rest) = logits.as_chunks::<BLOCK>();
            let mut total = [0.0_f64; LANES];
            for block in blocks {
                add_scaled(&mut total, block, largest, inverse_temperature);
            }
            if !rest.is_empty() {
                add_scaled(&mut total, &padded(rest), largest, inverse_temperature);
            }
            total.iter().sum()
        }
    }
    widest(Pass(logits, largest, inverse_temperature))
}

/// exp(z - largest) of each logit, into `exponentials`.
pub(crate) fn exponentiate(logits: &[f32], largest: f32, exponentials: &mut Vec<f32>) {
    struct Pass<'a>(&'a [f32], f32, &'a mut [f32]);
    impl NullaryFnOnce for Pass<'_> {
        type Output = ();

        #[inline(always)]
        fn call(self) {
            let Self(logits, largest, exponentials) = self;
            for (e, &z) in exponentials.iter_mut().zip(logits) {
                *e = exp_non_positive(z - largest);
            }
        }
    }
    exponentials.resize(logits.len(), 0.0);
    widest(Pass(logits, largest, exponentials));
}

/// The largest number; NaN counts for nothing, and -inf is the largest of none.
pub(crate) fn largest(values: &[f32]) -> f32 {
    struct Pass<'a>(&'a [f32]);
    impl NullaryFnOnce for Pass<'_> {
        type Output = f32;

        #[inline(always)]
        fn call(self) -> f32 {
            let (blocks, rest) = self.0.as_chunks::<BLOCK>();
            let largest = rest.iter().copied().fold(f32::NEG_INFINITY, greater);
            blocks.iter().map(maximum_of_block).fold(largest, greater)
        }
    }
    widest(Pass(values))
}

/// Replaces each logit by exp(z - largest), and returns their sum.
pub(crate) fn exponentiate_in_place(logits: &mut [f32], largest: f32) -> f64 {
    struct Pass<'a>(&'a mut [f32], f32);
    impl NullaryFnOnce for Pass<'_> {
        type Output = f64;

        #[inline(always)]
        fn call(self) -> f64 {
            let Self(logits, largest) = self;
            let (blocks, rest) = logits.as_chunks_mut::<BLOCK>();
            let mut total = [0.0_f64; LANES];
            for block in blocks {
                let mut e_sums = [0.0_f32; LANES];
                for logits in block.as_chunks_mut::<LANES>().0 {
                    for lane in 0..LANES {
                        logits[lane] = exp_non_positive(logits[lane] - largest);
                        e_sums[lane] += logits[lane];
                    }
                }
                for lane in 0..LANES {
                    total[lane] += f64::from(e_sums[lane]);
                }
            }
            let mut sum = total.iter().sum::<f64>();
            for logit in rest {
                *logit = exp_non_positive(*logit - largest);
                sum += f64::from(*logit);
            }
            sum
        }
    }
    widest(Pass(logits, largest))
}

/// The sum in f64.
pub(crate) fn sum_f64(values: &[f32]) -> f64 {
    struct Pass<'a>(&'a [f32]);
    impl NullaryFnOnce for Pass<'_> {
        type Output = f64;

        #[inline(always)]
        fn call(self) -> f64 {
            let mut sums = [0.0_f64; LANES];
            let (chunks, rest) = self.0.as_chunks::<LANES>();
            for chunk in chunks {
                for lane in 0..LANES {
                    sums[lane] += f64::from(chunk[lane]);
                }
            }
            for (sum, &value) in sums.iter_mut().zip(rest) {
                *sum += f64::from(value);
            }
            sums.iter().sum()
        }
    }
    widest(Pass(values))
}

/// Multiplies every number.
pub(crate) fn scale(values: &mut [f32], by: f32) {
    struct Pass<'a>(&'a mut [f32], f32);
    impl NullaryFnOnce for Pass<'_> {
        type Output = ();

        #[inline(always)]
        fn call(self) {
            for value in self.0 {
                *value *= self.1;
            }
        }
    }
    widest(Pass(values, by));
}

#[inline(always)]
fn add_scaled(total: &mut [f64; LANES], block: &[f32; BLOCK], largest: f32, by: f32) {
    let mut e_sums = [0.0_f32; LANES];
    for logits in block.as_chunks::<LANES>().0 {
        for lane in 0..LANES {
            e_sums[lane] += exp_non_positive((logits[lane] - largest) * by);
        }
    }
    for lane in 0..LANES {
        total[lane] += f64::from(e_sums[lane]);
    }
}

/// A block that ends in impossible logits.
#[inline(always)]
fn padded(rest: &[f32]) -> [f32; BLOCK] {
    let mut block = [f32::NEG_INFINITY; BLOCK];
    block[..rest.len()].copy_from_slice(rest);
    block
}

#[inline(always)]
fn maximum_of_block(block: &[f32; BLOCK]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for values in block.as_chunks::<LANES>().0 {
        for lane in 0..LANES {
            lanes[lane] = greater(lanes[lane], values[lane]);
        }
    }
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] = greater(lanes[lane], lanes[lane + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// `b` only if it is larger: a NaN in its place is not.
#[inline(always)]
fn greater(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize) -> Vec<f32> {
        (0..count).map(|i| -(((i * 2_654_435_761) % 1_000_003) as f32 / 20_000.0)).collect()
    }

    /// Labels of two machines are to be the same bytes.
    #[test]
    fn wide_vectors_give_the_same_bits() {
        for count in [1, 63, 64, 65, 1000] {
            let (logits, mut wide, mut plain) = (numbers(count), Sums::default(), Sums::default());
            wide.add(&logits, 0.0);
            logits.chunks(BLOCK).for_each(|block| plain.add_block(&padded(block), 0.0));
            let bits = |sums: [f64; LANES]| sums.map(f64::to_bits);
            assert_eq!(bits(wide.total), bits(plain.total));
            assert_eq!(bits(wide.weighted), bits(plain.weighted));
            let mut total = [0.0; LANES];
            logits.chunks(BLOCK).for_each(|block| add_scaled(&mut total, &padded(block), 0.0, 0.5));
            assert_eq!(partition(&logits, 0.0, 0.5).to_bits(), total.iter().sum::<f64>().to_bits());
            let (mut each, mut in_place) = (Vec::new(), logits.clone());
            exponentiate(&logits, 0.0, &mut each);
            let sum = exponentiate_in_place(&mut in_place, 0.0);
            assert_eq!(in_place, each);
            let expected: f64 = each.iter().copied().map(f64::from).sum();
            assert!((sum / expected - 1.0).abs() < 1e-6, "{sum} {expected}");
        }
    }

    #[test]
    fn maxima_of_blocks() {
        let mut values = numbers(200);
        (values[70], values[130], values[199]) = (5.0, f32::NAN, 7.0);
        let mut maxima = Vec::new();
        assert_eq!(block_maxima(&values, &mut maxima), 7.0);
        assert_eq!((largest(&values), largest(&[])), (7.0, f32::NEG_INFINITY));
        let naive = |block: &[f32]| block.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        assert_eq!(maxima, values.chunks(BLOCK).map(naive).collect::<Vec<_>>());
    }
}
