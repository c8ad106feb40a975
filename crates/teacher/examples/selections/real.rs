//! A trained model, and the same model with noise on its weights as the student.

use std::path::Path;

use anyhow::{Result, ensure};
use burn::tensor::{Device, Tensor, TensorData};
use softshard_labels::{Sequence, SequenceDataset};
use softshard_losses::{HeadLabels, HeadOptions, Keep, Targets, label_rows};
use softshard_model::{Arrangement, Decoder, Trainable};

use crate::{Random, World, divergence};

const SEQUENCES: usize = 48;
/// Noise on the student's weights, as a share of each matrix's root mean square.
const NOISE: f64 = 0.15;

pub(crate) struct Real {
    teacher: Decoder,
    student: Decoder,
    sequences: Vec<Sequence>,
}

impl Real {
    pub(crate) fn open(model: &Path, sequences: &Path) -> Result<Self> {
        let dataset = SequenceDataset::open(sequences)?;
        ensure!(
            dataset.len() >= SEQUENCES,
            "expected at least {SEQUENCES} sequences, found {}",
            dataset.len()
        );
        let teacher = Decoder::load(model, &Device::flex())?;
        let mut student = Decoder::load(model, &Device::flex().autodiff())?;
        student.train(Trainable::Model);
        let mut random = Random(5);
        for (_, parameter) in student.parameters_mut() {
            let (shape, device) = (parameter.dims(), parameter.device());
            let mut values: Vec<f32> = parameter.clone().into_data().try_into_vec()?;
            let squares: f64 = values.iter().map(|value| f64::from(*value).powi(2)).sum();
            let scale = NOISE * (squares / values.len() as f64).sqrt();
            values.iter_mut().for_each(|value| *value += (scale * random.normal()) as f32);
            *parameter = Tensor::from_data(TensorData::new(values, shape), &device).require_grad();
        }
        Ok(Self { teacher, student, sequences: dataset.read_range(0..SEQUENCES)? })
    }

    /// Positions 1..L, whatever the loss mask is.
    fn positions(&self, sequence: usize) -> Vec<i32> {
        (1..).take(self.sequences[sequence].input_ids.len() - 1).collect()
    }
}

impl World for Real {
    fn vocabulary(&self) -> usize {
        self.teacher.config().vocab_size
    }

    fn len(&self) -> usize {
        self.sequences.len()
    }

    fn input_ids(&self, sequence: usize) -> Vec<i32> {
        self.sequences[sequence].input_ids.clone()
    }

    fn labels(&self, sequence: usize, keep: Keep) -> Result<HeadLabels> {
        let (row, positions) = (&self.sequences[sequence], self.positions(sequence));
        let hidden = self.teacher.hidden_before(&[&row.input_ids], &[&positions], Arrangement::Padded)?;
        let key = row.key();
        let uniforms: Vec<f64> = positions.iter().map(|position| key.uniform(0, *position)).collect();
        let options = HeadOptions { keep, logit_scale: 1.0, temperatures: &[], rows_per_chunk: 64 };
        Ok(label_rows(hidden, self.teacher.head(), &row.input_ids[1..], &uniforms, &options)?)
    }

    /// By all of the student's weights.
    fn gradient(&self, sequence: usize, targets: &Targets) -> Result<(Vec<f64>, f64)> {
        let (row, positions) = (&self.sequences[sequence], self.positions(sequence));
        let mut student = self.student.clone();
        let hidden = student.hidden_before(&[&row.input_ids], &[&positions], Arrangement::Padded)?;
        let value = divergence().compute(hidden, student.head(), targets, 1.0);
        let found = value.loss.backward();
        let mut gradient = Vec::new();
        for (_, parameter) in student.parameters_mut() {
            let part = parameter.grad(&found).unwrap_or_else(|| parameter.clone().inner().zeros_like());
            let part: Vec<f64> = part.into_data().convert::<f64>().try_into_vec()?;
            gradient.extend(part);
        }
        Ok((gradient, value.divergence_sum))
    }
}
