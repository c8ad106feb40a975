//! A problem small enough for a reference over all events: a student, and a teacher cut to ragged top-k.

use std::ops::Range;

use burn::tensor::{DType, Device, Tensor, TensorData};
use softshard_losses::{DistillLoss, Divergence, LossValue, Tail, Targets};

pub(crate) const DIVERGENCES: [Divergence; 7] = [
    Divergence::ForwardKl,
    Divergence::ReverseKl,
    Divergence::Jsd { beta: 0.5 },
    Divergence::Jsd { beta: 0.1 },
    Divergence::SkewKl { lambda: 0.1 },
    Divergence::SkewKl { lambda: 0.9 },
    Divergence::Tvd,
];

pub(crate) const TAILS: [Tail; 4] = [Tail::Bucket, Tail::Renormalise, Tail::Drop, Tail::Uniform];

#[derive(Debug, Clone)]
pub(crate) struct Case {
    /// N, D, V.
    pub(crate) shape: [usize; 3],
    pub(crate) hidden: Vec<f64>,
    pub(crate) head: Vec<f64>,
    pub(crate) gold: Vec<i32>,
    /// Logits `[N, V]`.
    pub(crate) teacher: Vec<f64>,
    pub(crate) counts: Vec<usize>,
    pub(crate) factors: Vec<f32>,
    pub(crate) loss: DistillLoss,
}

/// Deterministic numbers in -1..1.
fn numbers(seed: u64, count: usize) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

impl Case {
    pub(crate) fn new(
        seed: u64,
        [rows, width, vocabulary]: [usize; 3],
        counts: &[usize],
        loss: DistillLoss,
    ) -> Self {
        Self {
            shape: [rows, width, vocabulary],
            hidden: numbers(seed, rows * width).iter().map(|x| x * 1.5).collect(),
            head: numbers(seed + 1, vocabulary * width).iter().map(|x| x * 1.5).collect(),
            gold: (0..rows).map(|row| i32::try_from(row * 7 % vocabulary).unwrap()).collect(),
            teacher: numbers(seed + 2, rows * vocabulary).iter().map(|x| x * 3.0).collect(),
            counts: counts.to_vec(),
            factors: vec![1.0; rows],
            loss,
        }
    }

    /// A student with a head of ones that is its teacher, whose tails are uniform. D is V.
    pub(crate) fn agreeing(seed: u64, shape: [usize; 3], counts: &[usize], loss: DistillLoss) -> Self {
        let mut case = Self::new(seed, shape, counts, loss);
        let [rows, _, vocabulary] = shape;
        for (row, &count) in counts.iter().enumerate().take(rows) {
            let ids = case.best(row);
            ids[count..].iter().for_each(|&id| case.teacher[row * vocabulary + id] = -4.0);
        }
        case.hidden.clone_from(&case.teacher);
        case.head =
            (0..vocabulary * vocabulary).map(|at| f64::from(u8::from(at % (vocabulary + 1) == 0))).collect();
        case
    }

    /// The same student and teacher on some of the rows.
    pub(crate) fn rows(&self, rows: Range<usize>) -> Self {
        let [_, width, vocabulary] = self.shape;
        Self {
            shape: [rows.len(), width, vocabulary],
            hidden: self.hidden[rows.start * width..rows.end * width].to_vec(),
            gold: self.gold[rows.clone()].to_vec(),
            teacher: self.teacher[rows.start * vocabulary..rows.end * vocabulary].to_vec(),
            counts: self.counts[rows.clone()].to_vec(),
            factors: self.factors[rows].to_vec(),
            ..self.clone()
        }
    }

    /// Tokens by falling probability.
    fn best(&self, row: usize) -> Vec<usize> {
        let vocabulary = self.shape[2];
        let logits = &self.teacher[row * vocabulary..(row + 1) * vocabulary];
        let mut ids: Vec<usize> = (0..vocabulary).collect();
        ids.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        ids
    }

    /// The teacher at the loss's temperature: its best tokens, and the log of what they leave.
    pub(crate) fn targets(&self) -> Targets {
        let vocabulary = self.shape[2];
        let mut targets = Targets {
            gold: self.gold.clone(),
            alpha_factors: self.factors.clone(),
            divergence_offset: vec![0.0; self.gold.len()],
            ..Targets::default()
        };
        for (row, &count) in self.counts.iter().enumerate() {
            let p = softmax(&self.teacher[row * vocabulary..(row + 1) * vocabulary], self.loss.temperature);
            let ids = self.best(row);
            targets.counts.push(i32::try_from(count).unwrap());
            targets.token_ids.extend(ids[..count].iter().map(|&id| i32::try_from(id).unwrap()));
            targets.log_probs.extend(ids[..count].iter().map(|&id| p[id].ln() as f32));
            targets.tail_log_mass.push(ids[count..].iter().map(|&id| p[id]).sum::<f64>().ln() as f32);
        }
        targets
    }

    /// The student's logits.
    pub(crate) fn logits(&self, row: usize) -> Vec<f64> {
        let width = self.shape[1];
        let hidden = &self.hidden[row * width..(row + 1) * width];
        self.head.chunks(width).map(|weights| weights.iter().zip(hidden).map(|(a, b)| a * b).sum()).collect()
    }

    /// The definition, row by row in f64, of what the labels say: (Σ weighted, Σ CE, Σ D where there is any).
    pub(crate) fn reference(&self) -> [f64; 3] {
        let (targets, loss) = (self.targets(), &self.loss);
        let (mut entry, mut sums) = (0, [0.0; 3]);
        for (row, &count) in self.counts.iter().enumerate() {
            let logits = self.logits(row);
            let named: Vec<(usize, f64)> = (entry..entry + count)
                .map(|at| {
                    (usize::try_from(targets.token_ids[at]).unwrap(), f64::from(targets.log_probs[at]).exp())
                })
                .collect();
            entry += count;
            let tail = f64::from(targets.tail_log_mass[row]).exp();
            let q = softmax(&logits, loss.temperature);
            let distance = distance(loss.divergence, &events(loss.tail, &named, tail, &q));
            let cross_entropy = -softmax(&logits, 1.0)[usize::try_from(self.gold[row]).unwrap()].ln();
            let alpha = loss.alpha * f64::from(self.factors[row]);
            let weighted = cross_entropy + alpha * loss.temperature.powi(2) * distance;
            sums[0] += if loss.normalise { weighted / (1.0 + alpha) } else { weighted };
            sums[1] += cross_entropy;
            sums[2] += if alpha > 0.0 { distance } else { 0.0 };
        }
        sums
    }

    /// The divergence of a row from the teacher itself, not from its labels.
    pub(crate) fn exact_reference(&self, row: usize) -> f64 {
        let (vocabulary, temperature) = (self.shape[2], self.loss.temperature);
        let p = softmax(&self.teacher[row * vocabulary..(row + 1) * vocabulary], temperature);
        let q = softmax(&self.logits(row), temperature);
        distance(self.loss.divergence, &p.into_iter().zip(q).collect::<Vec<_>>())
    }

    pub(crate) fn tensors(&self, dtype: DType) -> (Tensor<2>, Tensor<2>) {
        let [rows, width, vocabulary] = self.shape;
        let device = Device::flex().autodiff();
        let hidden = Tensor::from_data(TensorData::new(self.hidden.clone(), [rows, width]), (&device, dtype));
        let head =
            Tensor::from_data(TensorData::new(self.head.clone(), [vocabulary, width]), (&device, dtype));
        (hidden, head)
    }

    /// Value and gradients of hidden and head.
    pub(crate) fn run(&self, dtype: DType, divide_by: f64) -> (LossValue, Vec<f64>, Vec<f64>) {
        let (hidden, head) = self.tensors(dtype);
        let (hidden, head) = (hidden.require_grad(), head.require_grad());
        let value = self.loss.compute(hidden.clone(), head.clone(), &self.targets(), divide_by);
        let gradients = value.loss.clone().backward();
        let (d_hidden, d_head) = (hidden.grad(&gradients).unwrap(), head.grad(&gradients).unwrap());
        (value, to_f64(d_hidden), to_f64(d_head))
    }
}

/// (p, q) of each event.
fn events(tail: Tail, named: &[(usize, f64)], rest: f64, q: &[f64]) -> Vec<(f64, f64)> {
    let mut events: Vec<(f64, f64)> = named.iter().map(|&(id, p)| (p, q[id])).collect();
    let others: Vec<usize> = (0..q.len()).filter(|id| named.iter().all(|(named, _)| named != id)).collect();
    match tail {
        Tail::Drop => {}
        Tail::Bucket => events.push((rest, others.iter().map(|&id| q[id]).sum())),
        Tail::Uniform => events.extend(others.iter().map(|&id| (rest / others.len() as f64, q[id]))),
        Tail::Renormalise => {
            let (p, q) = events.iter().fold((0.0, 0.0), |sum, event| (sum.0 + event.0, sum.1 + event.1));
            events.iter_mut().for_each(|event| *event = (event.0 / p, event.1 / q));
        }
    }
    events
}

fn distance(divergence: Divergence, events: &[(f64, f64)]) -> f64 {
    let kl = |a: f64, b: f64| if a == 0.0 { 0.0 } else { a * (a / b).ln() };
    let term = |&(p, q): &(f64, f64)| match divergence {
        Divergence::ForwardKl => kl(p, q),
        Divergence::ReverseKl => kl(q, p.max(1e-10)),
        Divergence::Jsd { beta } => {
            let m = beta * p + (1.0 - beta) * q;
            beta * kl(p, m) + (1.0 - beta) * kl(q, m)
        }
        Divergence::SkewKl { lambda } => kl(p, lambda * p + (1.0 - lambda) * q),
        Divergence::Tvd => (p - q).abs() / 2.0,
    };
    events.iter().map(term).sum()
}

pub(crate) fn softmax(logits: &[f64], temperature: f64) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exponentials: Vec<f64> = logits.iter().map(|z| ((z - largest) / temperature).exp()).collect();
    let sum: f64 = exponentials.iter().sum();
    exponentials.into_iter().map(|e| e / sum).collect()
}

pub(crate) fn to_f64<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().convert::<f64>().try_into_vec().unwrap()
}

pub(crate) fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}
