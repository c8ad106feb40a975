//! Where a run's examples come from: label shards for distillation, sequences for supervised training.

use std::path::Path;

use anyhow::{Context, Result};
use softshard_labels::{
    Error, LabelDataset, LabelPlan, Sequence, SequenceDataset, SequenceLabels, Tokenizer,
};
use softshard_losses::{StoredLabels, Targets, at_temperature};

use softshard_model::Decoder;

use crate::{batches::Example, config::Objective, inputs::TrainInputs, loss_config::LossConfig};

/// The data of one run, read by index.
pub(crate) enum Examples {
    /// Mapped label shards: gold tokens and the teacher's distribution.
    Labels {
        /// The dataset.
        dataset: Box<LabelDataset>,
        /// Which of the stored log-partitions belongs to the loss's temperature; none at T = 1.
        partition: Option<usize>,
        /// Says how they are read.
        loss: Box<LossConfig>,
    },
    /// Gold tokens only.
    Sequences {
        /// All sequences of the split.
        sequences: Vec<Sequence>,
        /// Hash of the dataset's manifest.
        manifest_blake3: String,
        /// What the token ids mean.
        tokenizer: Tokenizer,
    },
}

impl Examples {
    /// Opens and verifies the dataset in `folder` that `objective` learns from.
    ///
    /// # Errors
    /// A missing or damaged dataset, a temperature whose partition was not stored, or draws that say nothing to the loss.
    pub(crate) fn open(folder: &Path, objective: Objective, loss: &LossConfig) -> Result<Self> {
        match objective {
            Objective::Supervised => {
                let dataset = SequenceDataset::open(folder)?;
                Ok(Examples::Sequences {
                    sequences: dataset.read_all()?,
                    manifest_blake3: dataset.manifest_blake3().to_string(),
                    tokenizer: dataset.manifest().info.tokenizer.clone(),
                })
            }
            // Every token of a sequence is scored: see `reading`.
            Objective::Distill | Objective::Pretrain => {
                let dataset = Box::new(LabelDataset::open(folder)?);
                let plan = &dataset.manifest().plan;
                let place = || format!("label dataset `{}`", folder.display());
                loss.check_selection(&plan.selection).with_context(place)?;
                let partition = partition_of(loss.temperature, plan).with_context(place)?;
                Ok(Examples::Labels { dataset, partition, loss: Box::new(loss.clone()) })
            }
        }
    }

    /// Refuses data of `folder` that this model cannot read.
    ///
    /// # Errors
    /// Another tokenizer, or sequences over the model's context.
    pub(crate) fn check_fit(
        &self,
        folder: &Path,
        inputs: &TrainInputs,
        decoder: &Decoder,
    ) -> Result<(), Error> {
        let (data, model) = (format!("`{}`", folder.display()), &inputs.config.model);
        inputs.tokenizer.expect_same(self.tokenizer(), &data)?;
        inputs.tokenizer.expect_fits(model, decoder.config().vocab_size)?;
        let (longest, limit) = (self.longest(), decoder.config().max_position_embeddings);
        if longest > limit {
            let expected =
                format!("sequences of at most the {limit} positions of model `{}`", model.display());
            return Err(Error::bad(data, expected, longest).hint("set `data.max_tokens` and prepare again"));
        }
        Ok(())
    }

    /// Whether there are a teacher's distributions.
    pub(crate) fn has_teacher(&self) -> bool {
        matches!(self, Examples::Labels { .. })
    }

    /// What the token ids mean.
    pub(crate) fn tokenizer(&self) -> &Tokenizer {
        match self {
            Examples::Labels { dataset, .. } => &dataset.manifest().plan.tokenizer,
            Examples::Sequences { tokenizer, .. } => tokenizer,
        }
    }

    /// Identifies the data to a checkpoint.
    pub(crate) fn manifest_blake3(&self) -> String {
        match self {
            Examples::Labels { dataset, .. } => dataset.manifest_blake3().to_string(),
            Examples::Sequences { manifest_blake3, .. } => manifest_blake3.clone(),
        }
    }

    /// Tokens and labelled tokens of every sequence.
    pub(crate) fn token_counts(&self) -> Vec<(usize, usize)> {
        match self {
            Examples::Labels { dataset, .. } => {
                (0..dataset.len()).map(|index| dataset.token_counts(index)).collect()
            }
            Examples::Sequences { sequences, .. } => sequences
                .iter()
                .map(|sequence| (sequence.input_ids.len(), sequence.positions.len()))
                .collect(),
        }
    }

    /// Tokens of the longest sequence.
    pub(crate) fn longest(&self) -> usize {
        self.token_counts().into_iter().map(|(tokens, _)| tokens).max().unwrap_or(0)
    }

    /// Sequence `index`, with its targets at the temperature of the loss.
    ///
    /// # Errors
    /// A row that does not decode or breaks the format's rules.
    pub(crate) fn read(&self, index: usize) -> Result<Example> {
        match self {
            Examples::Labels { dataset, partition, loss } => {
                let labels = dataset.read(index)?;
                Ok(distilled(labels, *partition, loss))
            }
            Examples::Sequences { sequences, .. } => Ok(supervised(&sequences[index])),
        }
    }
}

/// Whether the partition at `stored` is that of a loss at `temperature`, which was read as another type.
pub fn same_temperature(stored: f32, temperature: f64) -> bool {
    (f64::from(stored) - temperature).abs() < 1e-6
}

/// The column of log-partitions that makes `temperature` exact.
fn partition_of(temperature: f64, plan: &LabelPlan) -> Result<Option<usize>, Error> {
    #[expect(clippy::float_cmp, reason = "1 is written, not computed")]
    if temperature == 1.0 {
        return Ok(None);
    }
    let bad = |expected: String, hint: &'static str| {
        Err(Error::bad("`student.loss.temperature`", expected, temperature).hint(hint))
    };
    if plan.selection.draws().is_some() {
        let hint = "label with the selection top_k or top_p for other temperatures";
        return bad("1, as the labels were drawn at it".to_owned(), hint);
    }
    let stored = &plan.temperatures;
    match stored.iter().position(|&stored| same_temperature(stored, temperature)) {
        Some(index) => Ok(Some(index)),
        None => {
            let expected = format!("1 or a temperature whose partition is stored, {stored:?}");
            bad(expected, "label again with this temperature in `labels.temperatures`")
        }
    }
}

fn supervised(sequence: &Sequence) -> Example {
    Example {
        input_ids: sequence.input_ids.clone(),
        positions: sequence.positions.clone(),
        targets: Targets::without_teacher(sequence.gold()),
    }
}

fn distilled(labels: SequenceLabels, partition: Option<usize>, loss: &LossConfig) -> Example {
    let stored = StoredLabels {
        counts: &labels.counts,
        token_ids: &labels.token_ids,
        log_probs: &labels.log_probs,
        sample_counts: &labels.sample_counts,
        tail_log_mass: &labels.tail_log_mass,
        entropy: &labels.entropy,
    };
    let read = if loss.reads_draws() { Targets::of } else { Targets::of_exact };
    let mut targets = read(labels.gold(), &stored);
    if loss.alpha.is_by_entropy() {
        // An entropy of zero may be stored as a rounded one below.
        targets.alpha_factors = labels.entropy.iter().map(|entropy| entropy.max(0.0)).collect();
    }
    // At temperature 1 as stored: the tail is exact, also where the log-probabilities were rounded.
    if let Some(index) = partition {
        let SequenceLabels { counts, log_probs, log_sum_exp, log_partitions, .. } = &labels;
        (targets.log_probs, targets.tail_log_mass) =
            at_temperature(counts, log_probs, log_sum_exp, &log_partitions[index], loss.temperature);
    }
    Example { input_ids: labels.input_ids, positions: labels.positions, targets }
}
