//! One chunk of rows: its targets on the device, and its softmax split into the kept tokens and the rest.
//!
//! Legend: C rows of the chunk, K the most entries of any of its rows, V vocabulary.

use burn::tensor::{DType, Device, IndexingUpdateOp, Int, Tensor, TensorData};

use crate::targets::{Targets, entries};

/// Added to a logit to take its token out of a softmax. Finite, so that a row without any token left is no NaN.
const REMOVED: f64 = -1e30;

/// The teacher's side of a chunk. Rows with fewer than K entries are padded with token 0 at probability zero.
pub(crate) struct Kept {
    /// `[C, K]`
    ids: Tensor<2, Int>,
    /// 1 for an entry, 0 for padding, `[C, K]`.
    present: Tensor<2>,
    /// `[C, K]`
    probs: Tensor<2>,
    /// `[C, K]`, 0 where the probability is zero.
    log_probs: Tensor<2>,
    /// Probability of everything else, `[C, 1]`.
    tail: Tensor<2>,
    /// Its logarithm, 0 where it is zero, `[C, 1]`.
    tail_log: Tensor<2>,
    /// Σ probs + tail, `[C, 1]`: 1 up to the rounding of the labels.
    mass: Tensor<2>,
    /// Added to the divergence, `[C, 1]`.
    offset: Tensor<2>,
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

    /// Gold tokens `[C, 1]` and, if `with_teacher`, the teacher's entries of the next `rows` rows.
    pub(crate) fn next(&mut self, rows: usize, with_teacher: bool) -> (Tensor<2, Int>, Option<Kept>) {
        let range = self.row..self.row + rows;
        let gold = self.ids(self.targets.gold[range].to_vec(), [rows, 1]);
        let kept = with_teacher.then(|| self.kept(rows));
        self.row += rows;
        (gold, kept)
    }

    fn kept(&mut self, rows: usize) -> Kept {
        let counts = &self.targets.counts[self.row..self.row + rows];
        let width = counts.iter().map(|&count| entries(count)).max().unwrap_or(0).max(1);
        let cells = rows * width;
        let (mut ids, mut present) = (vec![0; cells], vec![0.0; cells]);
        let (mut probs, mut log_probs) = (vec![0.0; cells], vec![0.0; cells]);
        let (mut tail, mut tail_log, mut mass) = (vec![0.0; rows], vec![0.0; rows], vec![0.0; rows]);
        let offset = &self.targets.divergence_offset[self.row..self.row + rows];
        let offset = offset.iter().map(|&nats| f64::from(nats)).collect();
        for (row, &count) in counts.iter().enumerate() {
            let count = entries(count);
            for cell in row * width..row * width + count {
                let log_prob = f64::from(self.targets.log_probs[self.entry]);
                ids[cell] = self.targets.token_ids[self.entry];
                present[cell] = 1.0;
                if log_prob > f64::NEG_INFINITY {
                    (probs[cell], log_probs[cell]) = (log_prob.exp(), log_prob);
                    mass[row] += probs[cell];
                }
                self.entry += 1;
            }
            // With the whole vocabulary kept, "everything else" is empty: what rounding put there is nobody's.
            let log = f64::from(self.targets.tail_log_mass[self.row + row]);
            if log > f64::NEG_INFINITY && count < self.vocabulary {
                (tail[row], tail_log[row]) = (log.exp(), log);
                mass[row] += tail[row];
            }
        }
        Kept {
            ids: self.ids(ids, [rows, width]),
            present: self.floats(present, [rows, width]),
            probs: self.floats(probs, [rows, width]),
            log_probs: self.floats(log_probs, [rows, width]),
            tail: self.floats(tail, [rows, 1]),
            tail_log: self.floats(tail_log, [rows, 1]),
            mass: self.floats(mass, [rows, 1]),
            offset: self.floats(offset, [rows, 1]),
        }
    }

    fn ids(&self, values: Vec<i32>, shape: [usize; 2]) -> Tensor<2, Int> {
        Tensor::from_data(TensorData::new(values, shape), &self.device)
    }

    fn floats(&self, values: Vec<f64>, shape: [usize; 2]) -> Tensor<2> {
        Tensor::from_data(TensorData::new(values, shape), (&self.device, self.dtype))
    }
}

impl Kept {
    pub(crate) fn mass(&self) -> Tensor<2> {
        self.mass.clone()
    }
}

/// The student's softmax of one chunk, split into the kept tokens and the rest.
///
/// The rest is summed relative to its own largest logit, so its mass is exact however small it is: no `1 - Σ q`.
/// One exponential per logit; the kept ones are recomputed in `[C, K]`.
pub(crate) struct Split {
    /// exp(z - largest of the rest), 0 at the kept tokens, `[C, V]`.
    rest: Tensor<2>,
    /// Σ rest, at least 1, `[C, 1]`.
    rest_sum: Tensor<2>,
    /// Largest of the rest - largest, `[C, 1]`.
    rest_shift: Tensor<2>,
    /// z - largest of the kept tokens, `[C, K]`.
    kept: Option<Tensor<2>>,
    /// Largest logit of the row, `[C, 1]`.
    largest: Tensor<2>,
    /// log Σ exp(z - largest) over the vocabulary, `[C, 1]`.
    log_total: Tensor<2>,
}

impl Split {
    /// # Shapes
    /// `logits` `[C, V]`.
    pub(crate) fn new(logits: Tensor<2>, kept: Option<&Kept>) -> Self {
        let (logits, kept_logits) = match kept {
            None => (logits, None),
            Some(kept) => {
                let kept_logits = logits.clone().gather(1, kept.ids.clone());
                let removed = kept.present.clone() * REMOVED;
                (logits.scatter(1, kept.ids.clone(), removed, IndexingUpdateOp::Add), Some(kept_logits))
            }
        };
        let rest_largest = logits.clone().max_dim(1);
        let rest = (logits - rest_largest.clone()).exp();
        let rest_sum = rest.clone().sum_dim(1);
        let (Some(kept), Some(kept_logits)) = (kept, kept_logits) else {
            let (rest_shift, log_total) = (rest_largest.zeros_like(), rest_sum.clone().log());
            return Self { rest, rest_sum, rest_shift, kept: None, largest: rest_largest, log_total };
        };
        // Padding repeats token 0, which is among the kept ones or the rest: it is never the only largest.
        let largest = rest_largest.clone().max_pair(kept_logits.clone().max_dim(1));
        let rest_shift = rest_largest - largest.clone();
        let kept_logits = kept_logits - largest.clone();
        let kept_sum = (kept_logits.clone().exp() * kept.present.clone()).sum_dim(1);
        let log_total = (rest_shift.clone().exp() * rest_sum.clone() + kept_sum).log();
        Self { rest, rest_sum, rest_shift, kept: Some(kept_logits), largest, log_total }
    }

    /// -log q of the tokens whose logits are given, `[C, 1]`.
    pub(crate) fn cross_entropy(&self, gold_logits: Tensor<2>) -> Tensor<2> {
        self.log_total.clone() - (gold_logits - self.largest.clone())
    }

    /// Probability of the most probable token, `[C, 1]`.
    pub(crate) fn confidence(&self) -> Tensor<2> {
        (-self.log_total.clone()).exp()
    }

    /// 0 where the token whose logits are given is the most probable one, below elsewhere, `[C, 1]`.
    pub(crate) fn below_largest(&self, gold_logits: Tensor<2>) -> Tensor<2> {
        gold_logits - self.largest.clone()
    }

    /// Σ p (log p - log q) over the kept tokens and everything else, and the offset, `[C, 1]`.
    pub(crate) fn divergence(&self, teacher: &Kept) -> Tensor<2> {
        let student = self.kept_log_probs();
        let kept = (teacher.probs.clone() * (teacher.log_probs.clone() - student)).sum_dim(1);
        let rest = self.rest_shift.clone() + self.rest_sum.clone().log() - self.log_total.clone();
        kept + teacher.tail.clone() * (teacher.tail_log.clone() - rest) + teacher.offset.clone()
    }

    /// `softmax · q_weight`, `[C, V]`: the gradient of the log partition.
    ///
    /// # Shapes
    /// `q_weight` `[C, 1]`.
    pub(crate) fn gradient(self, q_weight: Tensor<2>) -> Tensor<2> {
        debug_assert!(self.kept.is_none(), "a split with a teacher has a divergence to derive");
        self.rest * (q_weight / self.rest_sum)
    }

    /// Gradient by the logits of `q_weight · log partition - p_weight · Σ p log q`: for a kept token
    /// q·q_weight - p·p_weight, for another one q·q_weight - p_weight·p_tail·q/q_tail, `[C, V]`.
    ///
    /// # Shapes
    /// `q_weight` `[C, 1]`.
    pub(crate) fn gradient_with(self, teacher: &Kept, q_weight: Tensor<2>, p_weight: f64) -> Tensor<2> {
        let kept = self.kept_log_probs().exp() * teacher.present.clone() * q_weight.clone()
            - teacher.probs.clone() * p_weight;
        let rest_weight = (self.rest_shift - self.log_total).exp() * q_weight
            - teacher.tail.clone() * p_weight / self.rest_sum;
        (self.rest * rest_weight).scatter(1, teacher.ids.clone(), kept, IndexingUpdateOp::Add)
    }

    fn kept_log_probs(&self) -> Tensor<2> {
        let kept = self.kept.clone().expect("asked for only where there is a teacher");
        kept - self.log_total.clone()
    }
}
