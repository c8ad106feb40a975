//! Where a run's examples come from: label shards or sequences, one dataset or several with weights.

use std::{collections::BTreeMap, ops::Range, path::Path};

use anyhow::{Context, Result};
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use softshard_labels::{
    Error, LabelDataset, LabelPlan, OptionalColumn, Provenance, Sequence, SequenceDataset, Split, Tokenizer,
};
use softshard_model::DecoderConfig;

use crate::{
    config::{Mixed, Objective},
    example::Example,
    inputs::TrainInputs,
    loss_config::LossConfig,
    targets::{distilled, for_every_token, supervised},
};

/// The data of one run, read by index.
pub(crate) struct Examples {
    /// In the order of the recipe.
    parts: Vec<Part>,
    /// Says how labels are read.
    loss: LossConfig,
    /// Every token is scored, whatever the loss mask.
    every_token: bool,
}

/// One dataset.
struct Part {
    /// As it stands in messages.
    place: String,
    data: Data,
    /// Passes over it in one epoch.
    weight: f64,
    /// Index of its first sequence among those of all datasets.
    first: u32,
}

enum Data {
    /// Mapped label shards: gold tokens and the teacher's distribution.
    Labels {
        dataset: Box<LabelDataset>,
        /// Which of the stored log-partitions belongs to the loss's temperature; none at T = 1.
        partition: Option<usize>,
    },
    /// Gold tokens only.
    Sequences { dataset: Box<SequenceDataset>, sequences: Vec<Sequence> },
}

impl Examples {
    /// Opens and verifies the datasets that `objective` learns from with `loss`.
    ///
    /// # Errors
    /// A missing or damaged dataset, or one without what the loss needs: the partition of its temperature, entropies, draws that say
    /// something to it.
    pub(crate) fn open(data: &[Mixed], objective: Objective, loss: &LossConfig) -> Result<Self> {
        let mut parts: Vec<Part> = Vec::with_capacity(data.len());
        for Mixed { labels: folder, weight } in data {
            let place = format!("`{}`", folder.display());
            let first = parts.last().map_or(Some(0), |last| last.first.checked_add(last.len()));
            let data = Data::open(folder, objective, loss)?;
            let fits =
                u32::try_from(data.len()).ok().zip(first).and_then(|(len, first)| first.checked_add(len));
            let first = first
                .filter(|_| fits.is_some())
                .ok_or_else(|| Error::bad(&place, "fewer than 2^32 sequences in all datasets", data.len()))?;
            parts.push(Part { place, data, weight: *weight, first });
        }
        let every_token = objective == Objective::Pretrain;
        Ok(Examples { parts, loss: loss.clone(), every_token })
    }

    /// Refuses data that a run cannot learn from: of another tokenizer or template, or over the model's context.
    ///
    /// # Errors
    /// Names the dataset, what was expected and what was found.
    pub(crate) fn check_fit(&self, inputs: &TrainInputs, shape: &DecoderConfig) -> Result<(), Error> {
        let model = &inputs.config.model;
        inputs.tokenizer.expect_fits(model, shape.vocab_size)?;
        let limit = shape.context();
        for Part { place, data, .. } in &self.parts {
            // Of several datasets each has the template that someone chose for it.
            let with_template = data.template() == "chat" && self.parts.len() == 1;
            inputs.tokenizer.expect_reads(data.tokenizer(), with_template, place)?;
            if data.template() != inputs.template {
                let expected = format!("the recipe's prompt template `{}`", inputs.template);
                let found = format!("`{}`", data.template());
                if self.parts.len() == 1 {
                    let hint = "set `data.template` to the one of this data, or make the data again";
                    return Err(Error::bad(place, expected, found).hint(hint));
                }
                // Of several datasets each has the prompts that someone chose for it.
                tracing::warn!("{place}: expected {expected}, found {found}");
            }
            let longest = (0..data.len()).map(|row| data.length(row)).max().unwrap_or(0);
            if longest > limit {
                let expected =
                    format!("sequences of at most the {limit} positions of model `{}`", model.display());
                let found = format!("one of {longest} tokens");
                return Err(
                    Error::bad(place, expected, found).hint("set `data.max_tokens` and prepare again")
                );
            }
        }
        Ok(())
    }

    /// Whether there are a teacher's distributions.
    pub(crate) fn has_teacher(&self) -> bool {
        self.parts.iter().all(|part| matches!(part.data, Data::Labels { .. }))
    }

    /// Identifies the data to a checkpoint: the hash of the one manifest, or those of all with their weights.
    pub(crate) fn identity(&self) -> Value {
        #[expect(clippy::float_cmp, reason = "1 is written, not computed")]
        match &self.parts[..] {
            [part] if part.weight == 1.0 => json!(part.data.manifest_blake3()),
            // By number, so that a difference is named by its key.
            parts => (0..)
                .zip(parts)
                .map(|(number, Part { data, weight, .. }): (u32, _)| {
                    (number.to_string(), json!({ "blake3": data.manifest_blake3(), "weight": weight }))
                })
                .collect(),
        }
    }

    /// What the datasets say of themselves, by the names of [`Examples::identity`].
    pub(crate) fn provenances(&self) -> BTreeMap<String, Provenance> {
        let is_alone = self.identity().is_string();
        let name = |number: usize| if is_alone { "data".to_owned() } else { format!("data.{number}") };
        let parts = self.parts.iter().enumerate();
        parts.filter_map(|(number, part)| Some((name(number), part.data.provenance()?))).collect()
    }

    /// Says it where rows that are to be reported are used for something else: a result of them would look better than the model is.
    pub(crate) fn warn_of_test(&self, what: &str) {
        let is_test = |part: &Part| part.data.split().split('_').any(|split| split == Split::Test.name());
        if self.parts.iter().any(is_test) {
            tracing::warn!("{what} rows of `test`: what is reported of them says nothing of others");
        }
    }

    /// Bytes that a token takes of a batch, if all of them are labelled.
    pub(crate) fn bytes_per_token(&self) -> u64 {
        const TOKEN: u64 = 4;
        // Position, gold token, count, tail, offset and factor; of an entry its token and its log-probability.
        const LABEL: u64 = 24;
        const ENTRY: u64 = 8;
        let entries = |part: &Part| match &part.data {
            Data::Labels { dataset, .. } => dataset.manifest().plan.selection.most_entries(),
            Data::Sequences { .. } => 0,
        };
        TOKEN + LABEL + ENTRY * u64::from(self.parts.iter().map(entries).max().unwrap_or(0))
    }

    /// What the datasets hold in memory besides batches: sequences whole, of labels their index and the row groups that stay decoded.
    pub(crate) fn bytes_in_memory(&self) -> u64 {
        let bytes = |part: &Part| match &part.data {
            Data::Labels { dataset, .. } => dataset.bytes_in_memory(),
            Data::Sequences { sequences, .. } => sequences.iter().map(bytes_of).sum(),
        };
        self.parts.iter().map(bytes).fold(0, usize::saturating_add) as u64
    }

    /// Sequences of all datasets.
    pub(crate) fn len(&self) -> usize {
        self.rows().len()
    }

    /// All of them, in the order of the datasets.
    pub(crate) fn rows(&self) -> Range<u32> {
        0..self.parts.last().map_or(0, |last| last.first + last.len())
    }

    /// Tokens of a sequence.
    pub(crate) fn length(&self, index: u32) -> usize {
        let (part, row) = self.place_of(index);
        part.data.length(row)
    }

    /// The sequences of an epoch, in no particular order; more often than once where a weight is above 1.
    ///
    /// A dataset is an endless row of passes, each in another order, and an epoch takes the next `weight` passes of it: with
    /// a weight of a half, two epochs see every sequence once.
    pub(crate) fn epoch(&self, seed: u64, epoch: u32) -> Vec<u32> {
        let mut rows = Vec::new();
        for (number, part) in (0u64..).zip(&self.parts) {
            let len = u64::from(part.len());
            let Range { start, end } = part.share(epoch);
            let mut at = start;
            while at < end {
                let (pass, from) = (at / len, at % len);
                let to = (from + (end - at)).min(len);
                let mut of_pass: Vec<u32> = (part.first..part.first + part.len()).collect();
                if to - from < len {
                    let mut random = ChaCha8Rng::seed_from_u64(seed);
                    // Streams below 2^32 are for the order of the epochs.
                    random.set_stream(((number + 1) << 32) | (pass & u64::from(u32::MAX)));
                    of_pass.shuffle(&mut random);
                }
                let index = |at: u64| usize::try_from(at).expect("a place in a vector");
                rows.extend_from_slice(&of_pass[index(from)..index(to)]);
                at += to - from;
            }
        }
        rows
    }

    /// A sequence, with its targets at the temperature of the loss.
    ///
    /// # Errors
    /// A row that does not decode or breaks the format's rules.
    pub(crate) fn read(&self, index: u32) -> Result<Example> {
        let (part, row) = self.place_of(index);
        let example = match &part.data {
            Data::Labels { dataset, partition } => distilled(dataset.read(row)?, *partition, &self.loss),
            Data::Sequences { sequences, .. } => supervised(&sequences[row]),
        };
        Ok(if self.every_token { for_every_token(example) } else { example })
    }

    fn place_of(&self, index: u32) -> (&Part, usize) {
        let part = &self.parts[self.parts.partition_point(|part| part.first <= index) - 1];
        (part, usize::try_from(index - part.first).expect("32 bits fit an address"))
    }
}

impl Part {
    fn len(&self) -> u32 {
        u32::try_from(self.data.len()).expect("checked at open")
    }

    /// Which of its passes' sequences, counted over all epochs, an epoch takes.
    fn share(&self, epoch: u32) -> Range<u64> {
        share(self.weight, self.len(), epoch)
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "weights are above 0; casts saturate"
)]
fn share(weight: f64, len: u32, epoch: u32) -> Range<u64> {
    let until = |epochs: f64| (weight * epochs * f64::from(len)).round() as u64;
    until(f64::from(epoch))..until(f64::from(epoch) + 1.0)
}

impl Data {
    fn open(folder: &Path, objective: Objective, loss: &LossConfig) -> Result<Self> {
        if !objective.reads_labels(loss) {
            let dataset = Box::new(SequenceDataset::open(folder)?);
            let sequences = dataset.read_all()?;
            return Ok(Data::Sequences { dataset, sequences });
        }
        let dataset = Box::new(LabelDataset::open(folder)?);
        let partition = needs(loss, &dataset.manifest().plan)
            .with_context(|| format!("label dataset `{}`", folder.display()))?;
        Ok(Data::Labels { dataset, partition })
    }

    fn len(&self) -> usize {
        match self {
            Data::Labels { dataset, .. } => dataset.len(),
            Data::Sequences { sequences, .. } => sequences.len(),
        }
    }

    fn length(&self, row: usize) -> usize {
        match self {
            Data::Labels { dataset, .. } => dataset.token_counts(row).0,
            Data::Sequences { sequences, .. } => sequences[row].input_ids.len(),
        }
    }

    fn tokenizer(&self) -> &Tokenizer {
        match self {
            Data::Labels { dataset, .. } => &dataset.manifest().plan.tokenizer,
            Data::Sequences { dataset, .. } => &dataset.manifest().info.tokenizer,
        }
    }

    fn template(&self) -> &str {
        match self {
            Data::Labels { dataset, .. } => &dataset.manifest().plan.template,
            Data::Sequences { dataset, .. } => &dataset.manifest().info.template,
        }
    }

    /// Of merged labels all of their names, as `train_valid`.
    fn split(&self) -> &str {
        match self {
            Data::Labels { dataset, .. } => &dataset.manifest().plan.split,
            Data::Sequences { dataset, .. } => &dataset.manifest().info.split,
        }
    }

    fn provenance(&self) -> Option<Provenance> {
        match self {
            Data::Labels { dataset, .. } => Some(Provenance::from(&dataset.manifest().plan)),
            Data::Sequences { dataset, .. } => dataset.manifest().provenance.clone(),
        }
    }

    fn manifest_blake3(&self) -> &str {
        match self {
            Data::Labels { dataset, .. } => dataset.manifest_blake3(),
            Data::Sequences { dataset, .. } => dataset.manifest_blake3(),
        }
    }
}

/// What a sequence takes in memory, with what the allocator adds to each of its lists.
fn bytes_of(sequence: &Sequence) -> usize {
    const ALLOCATION: usize = 16;
    let Sequence { source, input_ids, positions } = sequence;
    let list = |bytes: usize| (bytes + ALLOCATION / 2).next_multiple_of(ALLOCATION);
    let numbers = list(size_of_val(&input_ids[..])) + list(size_of_val(&positions[..]));
    size_of::<Sequence>() + numbers + source.as_ref().map_or(0, |source| list(source.len()))
}

/// Whether the partition at `stored` is that of a loss at `temperature`, which was read as another type.
pub fn same_temperature(stored: f32, temperature: f64) -> bool {
    (f64::from(stored) - temperature).abs() < 1e-6
}

/// The loss's temperature among those of the labels, if it is not 1; refuses labels without what the loss needs.
fn needs(loss: &LossConfig, plan: &LabelPlan) -> Result<Option<usize>, Error> {
    if loss.alpha.is_zero() {
        return Ok(None);
    }
    loss.check_selection(&plan.selection)?;
    if loss.alpha.is_by_entropy() && plan.omit.contains(&OptionalColumn::Entropy) {
        let expected = "labels with the column entropy, as alpha is by entropy";
        let hint = "label again without \"entropy\" in `labels.omit`, or give alpha a number";
        return Err(Error::bad("`student.loss.alpha`", expected, "none").hint(hint));
    }
    let temperature = loss.temperature;
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
        // What lies beyond the entries there is a difference of rounded numbers, of which less is left than of the rounding.
        Some(_) if temperature < 1.0 && !plan.has_tails() => {
            let expected =
                "1 or above, as labels of version 1 do not say what lies beyond their entries below 1";
            bad(expected.to_owned(), "label again: labels of this version with `labels.temperatures` say it")
        }
        Some(index) => Ok(Some(index)),
        None => {
            let expected = format!("1 or a temperature whose partition is stored, {stored:?}");
            bad(expected, "label again with this temperature in `labels.temperatures`")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_follow_each_other_and_add_up_to_the_weight() {
        for (weight, epochs, passes) in [(0.5, 4, 2), (2.5, 2, 5), (0.1, 10, 1), (1.0, 3, 3), (0.29, 100, 29)]
        {
            let mut at = 0;
            for epoch in 0..epochs {
                let Range { start, end } = share(weight, 37, epoch);
                assert_eq!(start, at);
                at = end;
            }
            assert_eq!(at, passes * 37, "weight {weight}");
        }
    }
}
