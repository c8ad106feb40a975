//! One chunk of rows: its targets on the device, as the events of a divergence.
//!
//! Legend: C rows of the chunk, K the most entries of any of its rows, V vocabulary, E events that are named: K, or K + 1 with a bucket.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use crate::{
    divergence::{Divergence, Tail},
    targets::{Targets, entries},
};

/// The log of a probability of zero, and what takes a token out of a softmax. Finite, so that a row without any token left is no NaN.
pub(crate) const ZERO: f64 = -1e30;

/// The teacher's least probability where a log of it weighs as much as the student likes: see [`Divergence::ReverseKl`].
const LEAST: f64 = 1e-10;

/// The teacher's side of a chunk. Rows with fewer than K entries are padded with token 0 at probability zero.
pub(crate) struct Kept {
    /// `[C, K]`
    pub(crate) ids: Tensor<2, Int>,
    /// 1 for an entry, 0 for padding, `[C, K]`.
    pub(crate) present: Tensor<2>,
    /// Of the named events, the bucket last, `[C, E]`.
    pub(crate) probs: Tensor<2>,
    /// Their logs, `[C, E]`.
    pub(crate) log_probs: Tensor<2>,
    /// Of each token that is not named, its log, and how many there are, all `[C, 1]`; for a tail that is uniform.
    pub(crate) others: Option<[Tensor<2>; 3]>,
    /// Added to the divergence, `[C, 1]`.
    pub(crate) offset: Tensor<2>,
}

/// Walks over the targets chunk by chunk.
pub(crate) struct TargetChunks<'a> {
    targets: &'a Targets,
    vocabulary: usize,
    device: Device,
    dtype: DType,
    row: usize,
    entry: usize,
}

/// The named events of one chunk, on the host.
struct Events {
    probs: Vec<f64>,
    log_probs: Vec<f64>,
}

impl<'a> TargetChunks<'a> {
    pub(crate) fn new(targets: &'a Targets, vocabulary: usize, device: Device, dtype: DType) -> Self {
        let in_vocabulary = |&id: &i32| usize::try_from(id).is_ok_and(|id| id < vocabulary);
        let outside = targets.gold.iter().chain(&targets.token_ids).find(|id| !in_vocabulary(id));
        assert!(
            outside.is_none(),
            "token {outside:?} is outside of the student's vocabulary of {vocabulary}"
        );
        Self { targets, vocabulary, device, dtype, row: 0, entry: 0 }
    }

    /// Gold tokens `[C, 1]` of the next `rows` rows, and their teacher's events if a divergence is asked for.
    pub(crate) fn next(
        &mut self,
        rows: usize,
        divergence: Option<(Divergence, Tail)>,
    ) -> (Tensor<2, Int>, Option<Kept>) {
        let range = self.row..self.row + rows;
        let gold = self.ids(self.targets.gold[range.clone()].to_vec(), [rows, 1]);
        let kept = divergence.map(|(divergence, tail)| self.kept(rows, divergence, tail));
        self.entry += self.targets.counts[range].iter().map(|&count| entries(count)).sum::<usize>();
        self.row += rows;
        (gold, kept)
    }

    fn kept(&self, rows: usize, divergence: Divergence, tail: Tail) -> Kept {
        let counts = &self.targets.counts[self.row..self.row + rows];
        let width = counts.iter().map(|&count| entries(count)).max().unwrap_or(0).max(1);
        let named = width + usize::from(tail == Tail::Bucket);
        let (mut ids, mut present) = (vec![0; rows * width], vec![0.0; rows * width]);
        let mut events = Events { probs: vec![0.0; rows * named], log_probs: vec![ZERO; rows * named] };
        let mut others = [vec![0.0; rows], vec![ZERO; rows], vec![0.0; rows]];
        let mut entry = self.entry;
        for (row, &count) in counts.iter().enumerate() {
            let (count, first) = (entries(count), row * named);
            for at in 0..count {
                ids[row * width + at] = self.targets.token_ids[entry];
                present[row * width + at] = 1.0;
                events.set(first + at, f64::from(self.targets.log_probs[entry]));
                entry += 1;
            }
            // With the whole vocabulary kept, "everything else" is empty: what rounding put there is nobody's.
            let unnamed = self.vocabulary - count;
            let log = f64::from(self.targets.tail_log_mass[self.row + row]);
            let log = if unnamed == 0 { f64::NEG_INFINITY } else { log };
            match tail {
                Tail::Drop => {}
                Tail::Bucket => events.set(first + width, log),
                Tail::Renormalise => events.renormalise(first..first + count),
                Tail::Uniform => {
                    #[expect(clippy::cast_precision_loss, reason = "a vocabulary is far below 2^53")]
                    let tokens = unnamed as f64;
                    let log = if divergence == Divergence::ReverseKl { log.max(LEAST.ln()) } else { log };
                    if log > f64::NEG_INFINITY && unnamed > 0 {
                        let each = log - tokens.ln();
                        [others[0][row], others[1][row], others[2][row]] = [each.exp(), each, tokens];
                    } else {
                        others[2][row] = tokens;
                    }
                }
            }
        }
        if divergence == Divergence::ReverseKl {
            events.log_probs.iter_mut().for_each(|log| *log = log.max(LEAST.ln()));
        }
        let column = |values| self.floats(values, [rows, 1]);
        let offset = &self.targets.divergence_offset[self.row..self.row + rows];
        Kept {
            ids: self.ids(ids, [rows, width]),
            present: self.floats(present, [rows, width]),
            probs: self.floats(events.probs, [rows, named]),
            log_probs: self.floats(events.log_probs, [rows, named]),
            others: (tail == Tail::Uniform).then(|| others.map(column)),
            offset: column(offset.iter().map(|&nats| f64::from(nats)).collect()),
        }
    }

    fn ids(&self, values: Vec<i32>, shape: [usize; 2]) -> Tensor<2, Int> {
        Tensor::from_data(TensorData::new(values, shape), &self.device)
    }

    fn floats(&self, values: Vec<f64>, shape: [usize; 2]) -> Tensor<2> {
        Tensor::from_data(TensorData::new(values, shape), (&self.device, self.dtype))
    }

    /// A number of each of the rows that come next, `[C, 1]`.
    pub(crate) fn column(&self, values: Vec<f64>) -> Tensor<2> {
        let rows = values.len();
        self.floats(values, [rows, 1])
    }
}

impl Events {
    fn set(&mut self, at: usize, log_prob: f64) {
        if log_prob > f64::NEG_INFINITY {
            (self.probs[at], self.log_probs[at]) = (log_prob.exp(), log_prob);
        }
    }

    /// Scales the events of a row to one.
    fn renormalise(&mut self, range: std::ops::Range<usize>) {
        let mass: f64 = self.probs[range.clone()].iter().sum();
        if mass > 0.0 {
            for at in range {
                self.probs[at] /= mass;
                self.log_probs[at] = (self.log_probs[at] - mass.ln()).max(ZERO);
            }
        }
    }
}
