//! Held-out sequences and what a model makes of them, teacher-forced.

use anyhow::Result;
use serde::{Deserialize, Serialize};
use softshard_labels::{
    Error, LabelDataset, OwnTokenizer, Progress, Sequence, SequenceDataset, SequenceKey, SequenceLabels,
};
use softshard_losses::{DistillLoss, HeadLabels, Targets, calibration::Calibration};
use softshard_model::{Arrangement, Decoder, Fitting, batches_by_length};

use crate::{
    EvaluateInputs, HeldOutScores,
    calibration::{DRAWS, report},
    inputs::{check_stop, nothing_held_out, too_large},
    partial::Parts,
    rows::{Document, PositionScores, Row, documents, positions, refused},
    statistics::{Resampling, number},
};

/// Rows of hidden states that meet the vocabulary at a time.
const ROWS_PER_CHUNK: usize = 256;

/// What is kept of a batch of held-out sequences.
#[derive(Default, Serialize, Deserialize)]
struct Part {
    nll: Vec<f64>,
    kl: Vec<f64>,
    confidences: Vec<f64>,
    correct: Vec<bool>,
}

/// The held-out sequences, with the teacher's distributions where it labelled them.
pub(crate) struct HeldOut {
    keys: Vec<SequenceKey>,
    /// Where each came from, where that is known.
    sources: Vec<Option<String>>,
    /// Token ids, labelled positions and targets of each.
    pub(crate) rows: Vec<(Vec<i32>, Vec<i32>, Targets)>,
    has_teacher: bool,
}

impl HeldOut {
    /// Where sequences are prepared, all of them must be labelled: found by key, so labels may be merged or imported ones.
    pub(crate) fn open(inputs: &EvaluateInputs, tokenizer: &OwnTokenizer) -> Result<Self> {
        let prepared = inputs.sequences.exists().then(|| SequenceDataset::open(inputs.sequences));
        let prepared = prepared.transpose()?;
        if inputs.labels.exists() {
            return Self::labelled(inputs, tokenizer, prepared.as_ref());
        }
        let Some(prepared) = prepared else { return Err(nothing_held_out(inputs).into()) };
        let info = &prepared.manifest().info;
        let place = format!("`{}`", inputs.sequences.display());
        tokenizer.expect_reads(&info.tokenizer, info.template == "chat", place)?;
        let sequences = prepared.read_all()?;
        let (keys, sources) = keys_and_sources(&sequences);
        let read = |sequence: Sequence| {
            let targets = Targets::without_teacher(sequence.gold());
            (sequence.input_ids, sequence.positions, targets)
        };
        Ok(Self { keys, sources, rows: sequences.into_iter().map(read).collect(), has_teacher: false })
    }

    fn labelled(
        inputs: &EvaluateInputs,
        tokenizer: &OwnTokenizer,
        prepared: Option<&SequenceDataset>,
    ) -> Result<Self> {
        let dataset = LabelDataset::open(inputs.labels)?;
        let place = format!("`{}`", inputs.labels.display());
        let plan = &dataset.manifest().plan;
        tokenizer.expect_reads(&plan.tokenizer, plan.template == "chat", &place)?;
        let (keys, sources) = match prepared {
            Some(prepared) => keys_and_sources(&prepared.read_all()?),
            None => (dataset.keys().collect(), vec![None; dataset.keys().count()]),
        };
        let unlabelled = keys.iter().filter(|key| dataset.find(key).is_none()).count();
        if unlabelled > 0 {
            let expected = format!("labels of `{}`", inputs.sequences.display());
            let found = format!("none for {unlabelled} of {} sequences", keys.len());
            return Err(Error::bad(place, expected, found).hint("label again").into());
        }
        let read = |labels: SequenceLabels| {
            let gold = labels.gold();
            let teacher = HeadLabels {
                counts: labels.counts,
                token_ids: labels.token_ids,
                log_probs: labels.log_probs,
                sample_counts: labels.sample_counts,
                tail_log_mass: labels.tail_log_mass,
                entropy: labels.entropy,
                ..HeadLabels::default()
            };
            (labels.input_ids, labels.positions, Targets::of(gold, &teacher))
        };
        let rows = keys.iter().map(|key| Ok(read(dataset.get(key)?))).collect::<Result<_>>()?;
        Ok(Self { keys, sources, rows, has_teacher: true })
    }

    /// BLAKE3 of their keys, in order: what two results must share to be compared.
    pub(crate) fn blake3(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for key in &self.keys {
            hasher.update(&key.0);
        }
        hasher.finalize().to_hex().to_string()
    }

    /// Negative log-likelihood, calibration and distance to the teacher, of all rows and of each.
    ///
    /// # Errors
    /// A sequence that is longer than the model's context, a score that is not finite, a device without memory; a stop that
    /// was asked for.
    pub(crate) fn score(
        &self,
        inputs: &EvaluateInputs,
        decoder: &Decoder,
        parts: &mut Parts,
    ) -> Result<(HeldOutScores, Vec<Row>)> {
        let lengths: Vec<usize> = self.rows.iter().map(|row| row.0.len()).collect();
        self.expect_fits(inputs, &lengths, decoder.config().context())?;
        // Weights do not matter to an evaluation: both terms are reported.
        let loss = DistillLoss::forward_kl(1.0, ROWS_PER_CHUNK);
        let fitting = Fitting::default();
        let tokens_of = |batch: &[usize]| batch.iter().map(|&index| lengths[index]).sum();
        let score = |batch: &[usize]| -> Result<_> {
            let ids: Vec<&[i32]> = batch.iter().map(|&index| self.rows[index].0.as_slice()).collect();
            let positions: Vec<&[i32]> = batch.iter().map(|&index| self.rows[index].1.as_slice()).collect();
            let mut targets = Targets::default();
            for &index in batch {
                targets.append(self.rows[index].2.clone());
            }
            targets.fold_ids_from(decoder.config().vocab_size);
            let hidden = decoder.hidden_before(&ids, &positions, Arrangement::Padded)?;
            Ok(loss.evaluate(hidden, decoder.head(), &targets))
        };
        let mut rows: Vec<Row> = vec![Row::default(); self.rows.len()];
        let (mut done, mut tokens) = (0, 0);
        for batch in batches_by_length(&lengths, inputs.config.max_tokens_per_batch) {
            check_stop(inputs)?;
            let part: Part = parts.next(|| {
                let scores = fitting.each(&batch, &tokens_of, inputs.device, &score);
                let scores =
                    scores.map_err(|error| too_large("held-out sequence", lengths[batch[0]], error))?;
                let mut part = Part::default();
                for scores in scores {
                    part.nll.extend(scores.cross_entropies);
                    part.kl.extend(scores.kls);
                    part.confidences.extend(scores.confidences);
                    part.correct.extend(scores.correct);
                }
                Ok(part)
            })?;
            self.give(&batch, &part, &mut rows);
            done += batch.len();
            tokens += part.nll.len();
            inputs.observer.progress(&Progress {
                stage: "held-out",
                done: done as u64,
                total: rows.len() as u64,
                unit: "sequences",
                tokens: Some(tokens as u64),
                ..Progress::default()
            });
        }
        if tokens == 0 {
            return Err(nothing_held_out(inputs).into());
        }
        Ok((summary(&rows)?, rows))
    }

    fn expect_fits(&self, inputs: &EvaluateInputs, lengths: &[usize], limit: usize) -> Result<()> {
        let longest = lengths.iter().max().copied().unwrap_or(0);
        if longest <= limit {
            return Ok(());
        }
        let read = if self.has_teacher { inputs.labels } else { inputs.sequences };
        let place = format!("`{}`", read.display());
        let expected = format_args!("sequences of at most the model's {limit} positions");
        let hint = "set `data.max_tokens` and prepare again";
        Err(Error::bad(place, expected, format_args!("one of {longest} tokens")).hint(hint).into())
    }

    /// Gives each sequence of a batch its scores, which stand one behind the other.
    fn give(&self, batch: &[usize], part: &Part, rows: &mut [Row]) {
        let mut start = 0;
        for &index in batch {
            let range = start..start + self.rows[index].1.len();
            start = range.end;
            #[expect(clippy::cast_possible_truncation, reason = "they were computed in f32")]
            let narrow =
                |values: &[f64]| values[range.clone()].iter().map(|&x| x as f32).collect::<Vec<f32>>();
            let mean = |values: &[f64]| values[range.clone()].iter().sum::<f64>() / number(range.len());
            rows[index] = Row {
                doc_id: index,
                doc: Document { key: self.keys[index].to_string(), source: self.sources[index].clone() },
                nll: mean(&part.nll),
                kl_to_teacher: self.has_teacher.then(|| mean(&part.kl)),
                positions: PositionScores {
                    nll: narrow(&part.nll),
                    // The last bit of an f32 may be above 1.
                    confidence: narrow(&part.confidences).into_iter().map(|p| p.clamp(0.0, 1.0)).collect(),
                    correct: part.correct[range.clone()].iter().map(|&one| u8::from(one)).collect(),
                },
                ..Row::default()
            };
        }
    }
}

/// Scores of all rows.
fn summary(rows: &[Row]) -> Result<HeldOutScores> {
    let tokens: usize = rows.iter().map(|row| row.positions.nll.len()).sum();
    let per_token = |of: fn(&Row) -> Option<f64>| {
        let sums = rows.iter().map(|row| Some(of(row)? * number(row.positions.nll.len())));
        sums.sum::<Option<f64>>().map(|sum| sum / number(tokens))
    };
    let wide = |scores: &Row| scores.positions.confidence.iter().copied().map(f64::from).collect::<Vec<_>>();
    let confidences: Vec<f64> = rows.iter().flat_map(wide).collect();
    let correct: Vec<bool> =
        rows.iter().flat_map(|row| &row.positions.correct).map(|&one| one == 1).collect();
    let resampling = Resampling { draws: DRAWS, ..Resampling::default() };
    let refused = |error| refused("held-out sequences", error);
    let positions = positions(rows).map_err(refused)?;
    let calibration = match documents(rows).count() {
        0 | 1 => None,
        _ => Some(report(&positions, &resampling).map_err(refused)?),
    };
    Ok(HeldOutScores {
        tokens,
        nll: per_token(|row| Some(row.nll)).expect("every row has one"),
        ece: Calibration::of(&confidences, &correct).ece,
        calibration,
        kl_to_teacher: per_token(|row| row.kl_to_teacher),
    })
}

fn keys_and_sources(sequences: &[Sequence]) -> (Vec<SequenceKey>, Vec<Option<String>>) {
    sequences.iter().map(|sequence| (sequence.key(), sequence.source.clone())).unzip()
}
