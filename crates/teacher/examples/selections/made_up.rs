//! A teacher of 128,256 tokens: a unigram prior by Zipf's law, and evidence of the context that is normal in the
//! logits. Mean entropy 2.3 nats, mean mass of the 64 most probable tokens 0.94.
//!
//! Legend: N tokens of a sequence, D width of a hidden state, V vocabulary.

use anyhow::Result;
use burn::tensor::{Device, Tensor, TensorData};
use softshard_losses::{HeadLabels, HeadOptions, Keep, Targets, label_rows};

use crate::{Random, World, divergence};

const VOCABULARY: usize = 128_256;
/// Of the evidence; the prior is one more component, of the value 1.
const WIDTH: usize = 64;
const SEQUENCES: usize = 64;
const TOKENS: usize = 128;
/// Standard deviations of the logits, one for each token.
const SPREAD: [f64; 2] = [3.0, 9.5];
const ZIPF: f64 = 1.2;
/// The student takes the evidence for weaker than it is, and has noise in it.
const STUDENT_SCALE: f64 = 0.8;
const STUDENT_NOISE: f64 = 0.2;

pub(crate) struct MadeUp {
    /// `[V, D + 1]`
    head: Tensor<2>,
    device: Device,
}

impl MadeUp {
    pub(crate) fn new() -> Self {
        let (device, mut random) = (Device::flex(), Random(1));
        let mut head = Vec::with_capacity(VOCABULARY * (WIDTH + 1));
        for id in 0..VOCABULARY {
            head.extend((0..WIDTH).map(|_| random.normal() as f32));
            head.push((-ZIPF * (id as f64 + 10.0).ln()) as f32);
        }
        let head = Tensor::from_data(TensorData::new(head, [VOCABULARY, WIDTH + 1]), &device);
        Self { head, device }
    }

    /// Hidden states of the teacher and of the student, `[N, D + 1]`.
    fn hidden(&self, sequence: usize) -> [Tensor<2>; 2] {
        let mut random = Random(1000 + sequence as u64);
        let (mut teacher, mut student) = (Vec::new(), Vec::new());
        for _ in 0..TOKENS {
            let spread = SPREAD[0] + (SPREAD[1] - SPREAD[0]) * random.unit();
            let scale = spread / (WIDTH as f64).sqrt();
            for _ in 0..WIDTH {
                let value = random.normal();
                teacher.push((scale * value) as f32);
                student.push((scale * (STUDENT_SCALE * value + STUDENT_NOISE * random.normal())) as f32);
            }
            teacher.push(1.0);
            student.push(1.0);
        }
        [teacher, student]
            .map(|values| Tensor::from_data(TensorData::new(values, [TOKENS, WIDTH + 1]), &self.device))
    }
}

impl World for MadeUp {
    fn vocabulary(&self) -> usize {
        VOCABULARY
    }

    fn len(&self) -> usize {
        SEQUENCES
    }

    /// Zipf's law, roughly: log-uniform.
    fn input_ids(&self, sequence: usize) -> Vec<i32> {
        let mut random = Random(2000 + sequence as u64);
        (0..=TOKENS).map(|_| ((VOCABULARY as f64).powf(random.unit()) - 1.0) as i32).collect()
    }

    fn labels(&self, sequence: usize, keep: Keep) -> Result<HeadLabels> {
        let [teacher, _] = self.hidden(sequence);
        let mut random = Random(3000 + sequence as u64);
        let uniforms: Vec<f64> = (0..TOKENS).map(|_| random.unit()).collect();
        let gold = &self.input_ids(sequence)[1..];
        let options = HeadOptions { keep, logit_scale: 1.0, temperatures: &[], rows_per_chunk: 64 };
        Ok(label_rows(teacher, self.head.clone(), gold, &uniforms, &options)?)
    }

    /// By a linear map in front of the frozen head, which is the identity so far: `[D + 1, D + 1]`.
    fn gradient(&self, sequence: usize, targets: &Targets) -> Result<(Vec<f64>, f64)> {
        let [_, inputs] = self.hidden(sequence);
        let hidden = inputs.clone().autodiff().require_grad();
        let value = divergence().compute(hidden.clone(), self.head.clone(), targets, 1.0);
        let d_hidden = hidden.grad(&value.loss.backward()).expect("the hidden states are tracked");
        let gradient = inputs.transpose().matmul(d_hidden).into_data().convert::<f64>();
        Ok((gradient.try_into_vec().expect("converted to f64"), value.divergence_sum))
    }
}
