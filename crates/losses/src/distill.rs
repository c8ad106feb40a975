//! The student's loss: cross-entropy with the gold tokens plus a divergence from the teacher, fused with the head.
//!
//! Legend: N rows (labelled positions), C rows of one chunk, D model width, K kept entries, V vocabulary.
//!
//! With q the student's distribution, p the teacher's, T the temperature and a row's `a = alpha · factor`, the row adds
//! `CE(gold, q) + a · T² · D(p_T, q_T)`, divided by `1 + a` if normalised. [`Tail`] says what the events of D are, [`Divergence`] what is
//! summed over them; docs/losses.md has all formulas. D of z/T has 1/T times the gradient by z, so the gradient of its term is
//! `a · T` times that by z/T. The logits of a chunk, and their gradient, live only as long as the chunk.

use std::ops::Range;

use burn::tensor::{DType, FloatDType, Int, Tensor, TensorData};
use softshard_products::{add_matmul, given, matmul};

use crate::{
    chunk::{Kept, TargetChunks, ZERO},
    divergence::{Divergence, Tail},
    product,
    split::Split,
    targets::Targets,
    wide::add_at,
};

/// What held-out rows are judged by.
const JUDGE: (Divergence, Tail) = (Divergence::ForwardKl, Tail::Bucket);

/// `CE(gold) + alpha · T² · D(teacher, student)`, a sum over rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DistillLoss {
    /// Weight of the divergence, times [`Targets::alpha_factors`]; 0 is plain supervised training, and skips all of the teacher's work.
    pub alpha: f64,
    /// How far the student is from the teacher.
    pub divergence: Divergence,
    /// What stands for the tokens that the labels do not name.
    pub tail: Tail,
    /// Temperature of the divergence, of both sides; the targets are made for the same one.
    pub temperature: f64,
    /// Weights 1/(1 + a) and a/(1 + a) instead of 1 and a, row by row.
    pub normalise: bool,
    /// Rows whose logits exist at a time.
    pub rows_per_chunk: usize,
}

/// A loss to call `backward` on, and its parts.
#[derive(Debug)]
pub struct LossValue {
    /// [`loss_sum`](Self::loss_sum) divided by `divide_by`, `[1]`, f32 (f64 for f64 hidden states).
    pub loss: Tensor<1>,
    /// The weighted sum over the rows, with T².
    pub loss_sum: f64,
    /// Σ -log q(gold) in nats: unweighted, at temperature 1.
    pub cross_entropy_sum: f64,
    /// Σ D in nats over rows whose factor is not 0: unweighted, without T²; 0 if alpha is 0.
    pub divergence_sum: f64,
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
    /// Whether the gold token is more probable than any other, `[N]`: a model that cannot tell two tokens apart has not told.
    pub correct: Vec<bool>,
}

impl DistillLoss {
    /// The plain forward KL with a bucket, `alpha` times it.
    pub fn forward_kl(alpha: f64, rows_per_chunk: usize) -> Self {
        let (divergence, tail) = JUDGE;
        Self { alpha, divergence, tail, temperature: 1.0, normalise: false, rows_per_chunk }
    }

    /// Whether drawn entries of labels estimate this loss without bias: only the forward KL with a bucket.
    ///
    /// Draws p̂ are right on average, so what is linear in p is: the gradient of the forward KL (arXiv 2503.16870). The other divergences
    /// are not linear in p, so E D(p̂, q) ≠ D(p, q), and the reverse KL is infinite wherever a token was not drawn; scaled to one over the
    /// drawn tokens, the student's side would not be linear in what was drawn. They read the exact entries of labels alone
    /// ([`Targets::of_exact`]).
    pub fn reads_draws(&self) -> bool {
        (self.divergence, self.tail) == JUDGE
    }

    /// The weights of the cross-entropy and of T² times the divergence, in a row of this factor.
    fn weights(&self, factor: f32) -> [f64; 2] {
        let alpha = self.alpha * f64::from(factor);
        let sum = if self.normalise { 1.0 + alpha } else { 1.0 };
        [1.0 / sum, alpha / sum]
    }

    /// The loss of N rows, with its gradient attached.
    ///
    /// The gradient by `hidden` (and by `head`, if autodiff tracks it) is computed here, chunk by chunk, and hung on
    /// the loss as a zero with this gradient (`softshard_products::given`). So autodiff keeps `[N, D]` of it
    /// (and `[V, D]` for a trained head), never `[N, V]`. Memory on top: at most about twice the logits of
    /// one chunk on the CPU, four times on other devices or with a uniform tail.
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
        let estimates = targets.divergence_offset.iter().any(|&nats| nats != 0.0);
        assert!(
            !estimates || self.alpha == 0.0 || self.reads_draws(),
            "only the forward KL with a bucket can be estimated from draws: use Targets::of_exact"
        );
        let (mut rows, mut d_hidden, mut d_head) = (Vec::new(), Vec::new(), None::<Tensor<2>>);
        while let Some(range) = chunks.range() {
            let factors = &targets.alpha_factors[range.clone()];
            let weights = |part: usize| {
                let weight = |&factor: &f32| self.weights(factor)[part] / divide_by;
                chunks.targets.column(factors.iter().map(weight).collect())
            };
            let weights = [weights(0), weights(1)];
            let teaches = self.alpha > 0.0 && factors.iter().any(|&factor| factor > 0.0);
            let chunk = chunks.next(range, teaches.then_some((self.divergence, self.tail)));
            let (values, d_logits) =
                self.values_and_gradient(chunk.logits, chunk.gold, chunk.teacher, weights);
            rows.push(values);
            d_hidden.push(product::pull_back(d_logits.clone(), &chunks.head, chunks.hidden.dtype()));
            if head.is_tracked() {
                let d_logits = d_logits.cast(FloatDType::from(chunks.head.dtype()));
                let d_logits = d_logits.transpose();
                d_head = Some(match d_head {
                    Some(sum) => add_matmul(sum, d_logits, chunk.hidden),
                    None => matmul(d_logits, chunk.hidden),
                });
            }
        }
        let (mut loss_sum, mut cross_entropy_sum, mut divergence_sum) = (0.0, 0.0, 0.0);
        for ([cross_entropy, divergence], &factor) in to_rows(rows).into_iter().zip(&targets.alpha_factors) {
            let [ce_weight, weight] = self.weights(factor);
            cross_entropy_sum += cross_entropy;
            loss_sum += ce_weight * cross_entropy;
            if weight > 0.0 {
                divergence_sum += divergence;
                loss_sum += weight * self.temperature.powi(2) * divergence;
            }
        }
        let loss = loss_sum / divide_by;
        let loss = Tensor::from_data(TensorData::from([loss]), (&hidden.device(), DType::from(chunks.dtype)));

        let mut zero = given(hidden, Tensor::cat(d_hidden, 0));
        if let Some(d_head) = d_head {
            zero = zero + given(head, d_head);
        }
        let loss = zero.cast(chunks.dtype) + loss;
        LossValue { loss, loss_sum, cross_entropy_sum, divergence_sum }
    }

    /// How near, how sure and how right the student is, by the cross-entropy and the forward KL with a bucket, whatever this loss
    /// weighs, sums and leaves out; its temperature is that of the targets.
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
        while let Some(range) = chunks.range() {
            let Chunk { logits, gold, teacher, .. } = chunks.next(range, Some(JUDGE));
            let teacher = teacher.expect("asked for");
            rows.push(self.row_values(logits, gold, &teacher));
        }
        for [cross_entropy, kl, confidence, ahead] in to_rows(rows) {
            evaluation.cross_entropy_sum += cross_entropy;
            evaluation.kl_sum += kl;
            evaluation.cross_entropies.push(cross_entropy);
            evaluation.kls.push(kl);
            evaluation.confidences.push(confidence);
            evaluation.correct.push(ahead > 0.0);
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
        if let Err(problem) = loss.divergence.check() {
            panic!("{:?}: {problem}", loss.divergence);
        }
        targets.assert_valid();
        let (hidden, head) = (hidden.clone().inner(), head.clone().inner());
        let dtype = if hidden.dtype() == DType::F64 { FloatDType::F64 } else { FloatDType::F32 };
        let targets = TargetChunks::new(targets, vocabulary, hidden.device(), dtype.into());
        Self { hidden, head, targets, dtype, rows_per_chunk: loss.rows_per_chunk, row: 0 }
    }

    /// The rows of the next chunk, if any are left.
    fn range(&self) -> Option<Range<usize>> {
        let [total, _] = self.hidden.dims();
        let end = (self.row + self.rows_per_chunk).min(total);
        (end > self.row).then_some(self.row..end)
    }

    /// The next chunk, with its teacher if a divergence is asked for.
    fn next(&mut self, range: Range<usize>, divergence: Option<(Divergence, Tail)>) -> Chunk {
        let hidden = self.hidden.clone().narrow(0, range.start, range.len());
        let logits = product::logits(hidden.clone(), &self.head);
        let (gold, teacher) = self.targets.next(range.len(), divergence);
        self.row = range.end;
        Chunk { hidden, logits, gold, teacher }
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
        [ce_weight, weight]: [Tensor<2>; 2],
    ) -> (Tensor<2>, Tensor<2>) {
        let (divergence, tail) = (self.divergence, self.tail);
        let gold_logits = logits.clone().gather(1, gold.clone());
        let (cross_entropy, values, d_logits) = match teacher {
            None => {
                let student = Split::whole(logits);
                let cross_entropy = student.cross_entropy(gold_logits);
                (cross_entropy.clone(), cross_entropy.zeros_like(), student.gradient(ce_weight.clone()))
            }
            // At temperature 1 one softmax serves both parts.
            Some(teacher) if self.temperature == 1.0 => {
                let student = Split::new(logits, &teacher, divergence, tail);
                let cross_entropy = student.cross_entropy(gold_logits);
                let distance = student.distance(&teacher, divergence, tail);
                let values = distance.values.clone();
                let d_logits = student.gradient_with(&teacher, tail, distance, ce_weight.clone(), weight);
                (cross_entropy, values, d_logits)
            }
            Some(teacher) => {
                let softened = Split::new(logits.clone() / self.temperature, &teacher, divergence, tail);
                let distance = softened.distance(&teacher, divergence, tail);
                let values = distance.values.clone();
                let weight = weight * self.temperature; // T² of the loss, 1/T of the derivative of z/T
                let d_logits =
                    softened.gradient_with(&teacher, tail, distance, ce_weight.zeros_like(), weight);
                let student = Split::whole(logits);
                let cross_entropy = student.cross_entropy(gold_logits);
                (cross_entropy, values, d_logits + student.gradient(ce_weight.clone()))
            }
        };
        let d_logits = add_at(d_logits, gold, -ce_weight);
        (Tensor::cat(vec![cross_entropy, values], 1), d_logits)
    }

    /// Cross-entropy, divergence, largest probability, and gold logit - largest logit of the others of each row, `[C, 4]`.
    fn row_values(&self, logits: Tensor<2>, gold: Tensor<2, Int>, teacher: &Kept) -> Tensor<2> {
        let gold_logits = logits.clone().gather(1, gold.clone());
        let others = add_at(logits.clone(), gold, gold_logits.full_like(ZERO)).max_dim(1);
        let softened = logits.clone() / self.temperature;
        let student = Split::whole(logits);
        let (divergence, tail) = JUDGE;
        let values = vec![
            student.cross_entropy(gold_logits.clone()),
            Split::new(softened, teacher, divergence, tail).distance(teacher, divergence, tail).values,
            student.confidence(),
            gold_logits - others,
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
