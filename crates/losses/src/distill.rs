//! The student's loss: cross-entropy with the gold tokens plus a divergence from the teacher, fused with the head.
//!
//! Legend: N rows (labelled positions), C rows of one chunk, D model width, K kept entries, V vocabulary.
//!
//! With q the student's distribution, p the teacher's and T the temperature, a row adds
//! `CE(gold, q) + alpha · T² · KL(p_T ‖ q_T)`. The events of the divergence are the kept tokens, and one "everything
//! else" on both sides: `KL = Σ p_k (log p_k - log q_k) + p_tail (log p_tail - log q_tail)`, and for drawn tokens the
//! constant [`Targets::divergence_offset`], with which it estimates that of the full distribution. Its gradient by a logit
//! is `(q - p)/T` for a kept token and `(q - p_tail · q/q_tail)/T` for another one. The logits of a chunk, and their
//! gradient, live only as long as the chunk.

use burn::tensor::{DType, FloatDType, IndexingUpdateOp, Int, Tensor, TensorData};

use crate::chunk::{Kept, Split, TargetChunks};
use crate::targets::Targets;

/// `CE(gold) + alpha · T² · KL(teacher ‖ student)`, a sum over rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DistillLoss {
    /// Weight of the divergence; 0 is plain supervised training, and skips all of the teacher's work.
    pub alpha: f64,
    /// Temperature of the divergence, of both sides; the targets are made for the same one.
    pub temperature: f64,
    /// Weights 1/(1 + alpha) and alpha/(1 + alpha) instead of 1 and alpha.
    pub normalise: bool,
    /// Rows whose logits exist at a time.
    pub rows_per_chunk: usize,
}

/// A loss to call `backward` on, and its two parts.
#[derive(Debug)]
pub struct LossValue {
    /// The weighted sum over the rows, divided by `divide_by`, `[1]`, f32 (f64 for f64 hidden states).
    pub loss: Tensor<1>,
    /// Σ -log q(gold) in nats: unweighted, at temperature 1.
    pub cross_entropy_sum: f64,
    /// Σ KL(p_T ‖ q_T) in nats: unweighted, without T²; 0 if alpha is 0.
    pub kl_sum: f64,
}

/// What the student says of held-out rows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Evaluation {
    /// Σ -log q(gold) in nats, at temperature 1.
    pub cross_entropy_sum: f64,
    /// Σ KL(p_T ‖ q_T) in nats, without T².
    pub kl_sum: f64,
    /// -log q(gold) of each row, `[N]`.
    pub cross_entropies: Vec<f64>,
    /// KL(p_T ‖ q_T) of each row, `[N]`.
    pub kls: Vec<f64>,
    /// Probability of the student's most probable token in each row, `[N]`.
    pub confidences: Vec<f64>,
    /// Whether the gold token is (one of) the most probable, `[N]`.
    pub correct: Vec<bool>,
}

impl DistillLoss {
    /// The weights of the cross-entropy and of T² times the divergence.
    pub fn weights(&self) -> (f64, f64) {
        let sum = if self.normalise { 1.0 + self.alpha } else { 1.0 };
        (1.0 / sum, self.alpha / sum)
    }

    /// The loss of N rows, with its gradient attached.
    ///
    /// The gradient by `hidden` (and by `head`, if autodiff tracks it) is computed here, chunk by chunk, and hung on
    /// the loss as `s - detach(s) + loss` with `s = Σ hidden · d_hidden`. So autodiff keeps `[N, D]` of it (and
    /// `[V, D]` for a trained head), never `[N, V]`. Memory on top: about four times the logits of one chunk.
    ///
    /// A non-finite logit makes the loss non-finite: look before the optimizer steps.
    ///
    /// # Shapes
    /// `hidden` `[N, D]`, `head` `[V, D]`, targets of N rows; N > 0.
    ///
    /// `divide_by`: the number of labelled tokens of the whole accumulated batch.
    ///
    /// # Panics
    /// If the shapes disagree, N is 0, a token is outside of the vocabulary V, or a field of the loss is out of range.
    /// (`backward` panics by itself where neither `hidden` nor `head` is tracked by autodiff.)
    pub fn compute(
        &self,
        hidden: Tensor<2>,
        head: Tensor<2>,
        targets: &Targets,
        divide_by: f64,
    ) -> LossValue {
        assert!(divide_by > 0.0, "a loss is divided by a positive number of tokens, found {divide_by}");
        let mut chunks = Chunks::new(self, &hidden, &head, targets);
        let (ce_weight, kl_weight) = self.weights();
        let (ce_weight, kl_weight) = (ce_weight / divide_by, kl_weight / divide_by);
        let (mut rows, mut d_hidden, mut d_head) = (Vec::new(), Vec::new(), None::<Tensor<2>>);
        while let Some(chunk) = chunks.next(self.alpha > 0.0) {
            let (values, d_logits) =
                self.values_and_gradient(chunk.logits, chunk.gold, chunk.teacher, [ce_weight, kl_weight]);
            rows.push(values);
            let d_logits = d_logits.cast(FloatDType::from(chunks.head.dtype()));
            d_hidden.push(d_logits.clone().matmul(chunks.head.clone()));
            if head.is_tracked() {
                let product = d_logits.transpose().matmul(chunk.hidden);
                d_head = Some(match d_head {
                    Some(sum) => sum + product,
                    None => product,
                });
            }
        }
        let (mut cross_entropy_sum, mut kl_sum) = (0.0, 0.0);
        for [cross_entropy, kl] in to_rows(rows) {
            cross_entropy_sum += cross_entropy;
            kl_sum += kl;
        }
        let loss = ce_weight * cross_entropy_sum + kl_weight * self.temperature.powi(2) * kl_sum;
        let loss = Tensor::from_data(TensorData::from([loss]), (&hidden.device(), DType::from(chunks.dtype)));

        let mut surrogate = (hidden * Tensor::cat(d_hidden, 0)).sum();
        if let Some(d_head) = d_head {
            surrogate = surrogate + (head * d_head).sum();
        }
        let surrogate = surrogate.cast(chunks.dtype);
        LossValue { loss: surrogate.clone() - surrogate.detach() + loss, cross_entropy_sum, kl_sum }
    }

    /// The same values without a gradient, and how sure and how right the student is.
    ///
    /// The divergence is computed whatever alpha is.
    ///
    /// # Shapes
    /// As [`compute`](Self::compute); N may be 0.
    ///
    /// # Panics
    /// As [`compute`](Self::compute).
    pub fn evaluate(&self, hidden: Tensor<2>, head: Tensor<2>, targets: &Targets) -> Evaluation {
        let mut evaluation = Evaluation::default();
        if targets.is_empty() {
            return evaluation;
        }
        let mut chunks = Chunks::new(self, &hidden, &head, targets);
        let mut rows = Vec::new();
        while let Some(Chunk { logits, gold, teacher, .. }) = chunks.next(true) {
            let teacher = teacher.expect("asked for");
            rows.push(self.row_values(logits, gold, &teacher));
        }
        for [cross_entropy, kl, confidence, below_largest] in to_rows(rows) {
            evaluation.cross_entropy_sum += cross_entropy;
            evaluation.kl_sum += kl;
            evaluation.cross_entropies.push(cross_entropy);
            evaluation.kls.push(kl);
            evaluation.confidences.push(confidence);
            evaluation.correct.push(below_largest == 0.0);
        }
        evaluation
    }
}

/// The rows of one chunk with their logits and targets.
struct Chunk {
    hidden: Tensor<2>,
    logits: Tensor<2>,
    gold: Tensor<2, Int>,
    teacher: Option<Kept>,
}

/// Walks over the rows, making the logits of one chunk at a time, outside of autodiff.
struct Chunks<'a> {
    hidden: Tensor<2>,
    head: Tensor<2>,
    targets: TargetChunks<'a>,
    /// Of the logits and all that follows: f32, or f64 for f64 hidden states.
    dtype: FloatDType,
    rows_per_chunk: usize,
    row: usize,
}

impl<'a> Chunks<'a> {
    fn new(loss: &DistillLoss, hidden: &Tensor<2>, head: &Tensor<2>, targets: &'a Targets) -> Self {
        let ([rows, width], [vocabulary, head_width]) = (hidden.dims(), head.dims());
        assert_eq!(width, head_width, "hidden [N, D] and head [V, D] have different D");
        assert_eq!(rows, targets.len(), "hidden [N, D] and targets have different N");
        assert!(rows > 0, "a loss has at least one row");
        assert!(loss.alpha >= 0.0 && loss.alpha.is_finite(), "alpha is not negative, found {}", loss.alpha);
        assert!(
            loss.temperature > 0.0 && loss.temperature.is_finite(),
            "a temperature is positive, found {}",
            loss.temperature
        );
        assert!(loss.rows_per_chunk > 0, "a chunk has at least one row");
        targets.assert_lengths();
        let (hidden, head) = (hidden.clone().inner(), head.clone().inner());
        let dtype = if hidden.dtype() == DType::F64 { FloatDType::F64 } else { FloatDType::F32 };
        let targets = TargetChunks::new(targets, vocabulary, hidden.device(), dtype.into());
        Self { hidden, head, targets, dtype, rows_per_chunk: loss.rows_per_chunk, row: 0 }
    }

    fn next(&mut self, with_teacher: bool) -> Option<Chunk> {
        let [total, _] = self.hidden.dims();
        let rows = self.rows_per_chunk.min(total - self.row);
        if rows == 0 {
            return None;
        }
        let hidden = self.hidden.clone().narrow(0, self.row, rows);
        let logits = hidden.clone().matmul(self.head.clone().transpose()).cast(self.dtype);
        let (gold, teacher) = self.targets.next(rows, with_teacher);
        self.row += rows;
        Some(Chunk { hidden, logits, gold, teacher })
    }
}

impl DistillLoss {
    /// Cross-entropy and divergence of each row, `[C, 2]`, and the gradient of their weighted sum by the logits,
    /// `[C, V]`.
    fn values_and_gradient(
        &self,
        logits: Tensor<2>,
        gold: Tensor<2, Int>,
        teacher: Option<Kept>,
        [ce_weight, kl_weight]: [f64; 2],
    ) -> (Tensor<2>, Tensor<2>) {
        let gold_logits = logits.clone().gather(1, gold.clone());
        let ones = gold_logits.ones_like();
        let (cross_entropy, kl, d_logits) = match teacher {
            None => {
                let student = Split::new(logits, None);
                let cross_entropy = student.cross_entropy(gold_logits);
                (cross_entropy, ones.zeros_like(), student.gradient(ones.clone() * ce_weight))
            }
            // At temperature 1 one softmax serves both parts.
            Some(teacher) if self.temperature == 1.0 => {
                let student = Split::new(logits, Some(&teacher));
                let (cross_entropy, kl) = (student.cross_entropy(gold_logits), student.divergence(&teacher));
                let q_weight = teacher.mass() * kl_weight + ce_weight;
                (cross_entropy, kl, student.gradient_with(&teacher, q_weight, kl_weight))
            }
            Some(teacher) => {
                let softened = Split::new(logits.clone() / self.temperature, Some(&teacher));
                let kl = softened.divergence(&teacher);
                let kl_weight = kl_weight * self.temperature; // T² of the loss, 1/T of the derivative of z/T
                let d_kl = softened.gradient_with(&teacher, teacher.mass() * kl_weight, kl_weight);
                let student = Split::new(logits, None);
                let cross_entropy = student.cross_entropy(gold_logits);
                (cross_entropy, kl, d_kl + student.gradient(ones.clone() * ce_weight))
            }
        };
        let d_logits = d_logits.scatter(1, gold, ones * -ce_weight, IndexingUpdateOp::Add);
        (Tensor::cat(vec![cross_entropy, kl], 1), d_logits)
    }

    /// Cross-entropy, divergence, largest probability, and gold logit - largest logit of each row, `[C, 4]`.
    fn row_values(&self, logits: Tensor<2>, gold: Tensor<2, Int>, teacher: &Kept) -> Tensor<2> {
        let gold_logits = logits.clone().gather(1, gold);
        let softened = logits.clone() / self.temperature;
        let student = Split::new(logits, None);
        let values = vec![
            student.cross_entropy(gold_logits.clone()),
            Split::new(softened, Some(teacher)).divergence(teacher),
            student.confidence(),
            student.below_largest(gold_logits),
        ];
        Tensor::cat(values, 1)
    }
}

/// The rows of all chunks on the host; the only point where a device is waited for.
fn to_rows<const COLUMNS: usize>(chunks: Vec<Tensor<2>>) -> Vec<[f64; COLUMNS]> {
    let values = Tensor::cat(chunks, 0).into_data().convert::<f64>();
    let values = values.as_slice::<f64>().expect("converted to f64");
    let (rows, _) = values.as_chunks::<COLUMNS>();
    rows.to_vec()
}
