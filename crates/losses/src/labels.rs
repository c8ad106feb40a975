//! What is asked of the teacher's head, and what it gives.
//!
//! Legend: N rows, V vocabulary.

use crate::select::{Keep, RowLabels};

/// Labels of N rows at temperature 1: the columns of [`RowLabels`], kept entries flattened over the rows.
///
/// What a teacher's head gives, and what a student's [`Targets`](crate::Targets) are made of. Where any entry is drawn, each row has
/// the same number of exact ones. Of the columns behind `sample_counts` targets need `tail_log_mass`, and `entropy` where entries are
/// drawn; others may be empty.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HeadLabels {
    /// Entries kept per row, `[N]`.
    pub counts: Vec<i32>,
    /// Kept tokens of all rows, per row first the exact and then the drawn ones, `[Σ counts]`.
    pub token_ids: Vec<i32>,
    /// Log probabilities of the exact ones in the full vocabulary at temperature 1.
    pub log_probs: Vec<f32>,
    /// How often the drawn ones were drawn.
    pub sample_counts: Vec<i32>,
    /// log Σ exp(z) of the raw logits, `[N]`.
    pub log_sum_exp: Vec<f32>,
    /// Log of the mass beyond the exact tokens, see [`RowLabels::tail_log_mass`], `[N]`.
    pub tail_log_mass: Vec<f32>,
    /// Entropy of the full distribution in nats, `[N]`.
    pub entropy: Vec<f32>,
    /// Log probability of the token that is really there, `[N]`.
    pub gold_log_prob: Vec<f32>,
    /// log Σ exp(z / T), one `[N]` for each extra temperature T.
    pub log_partitions: Vec<Vec<f32>>,
    /// Log of the mass at T beyond the exact tokens, one `[N]` for each; none where no token is exact.
    pub tail_log_masses: Vec<Vec<f32>>,
}

impl HeadLabels {
    /// Number of rows, N.
    pub fn len(&self) -> usize {
        self.counts.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    /// How many entries of each row are exact, where any are drawn.
    pub(crate) fn exact_entries(&self) -> usize {
        let exact_entries = self.log_probs.len() / self.counts.len();
        assert_eq!(exact_entries * self.counts.len(), self.log_probs.len(), "log_probs [N · exact entries]");
        exact_entries
    }

    pub(crate) fn without_rows(options: &HeadOptions<'_>) -> Self {
        let columns = vec![Vec::new(); options.temperatures.len()];
        let tails = if options.keep.exact() > 0 { columns.clone() } else { Vec::new() };
        Self { log_partitions: columns, tail_log_masses: tails, ..Default::default() }
    }

    pub(crate) fn push(&mut self, row: RowLabels) {
        self.counts.push(i32::try_from(row.token_ids.len()).expect("V < 2^31"));
        self.token_ids.extend(row.token_ids);
        self.log_probs.extend(row.log_probs);
        self.sample_counts.extend(row.sample_counts);
        self.log_sum_exp.push(row.log_sum_exp);
        self.tail_log_mass.push(row.tail_log_mass);
        self.entropy.push(row.entropy);
        self.gold_log_prob.push(row.gold_log_prob);
        for (column, value) in self.log_partitions.iter_mut().zip(row.log_partitions) {
            column.push(value);
        }
        for (column, value) in self.tail_log_masses.iter_mut().zip(row.tail_log_masses) {
            column.push(value);
        }
    }
}

/// What is computed of the head's logits, and how.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeadOptions<'a> {
    /// Which tokens are kept.
    pub keep: Keep,
    /// Logits are multiplied by it, in f32, before anything else: above 1 for a teacher that is surer than it was, below
    /// for one that is less sure. 1 changes nothing.
    pub logit_scale: f32,
    /// Extra temperatures to take log partitions and tails at.
    pub temperatures: &'a [f32],
    /// Rows whose logits exist at a time.
    pub rows_per_chunk: usize,
}

impl HeadOptions<'_> {
    /// Refuses what no head can give.
    ///
    /// # Panics
    /// It is asked for.
    pub(crate) fn check(&self) {
        let &HeadOptions { keep, logit_scale, temperatures, rows_per_chunk } = self;
        assert!(rows_per_chunk > 0, "a chunk has at least one row");
        assert!(keep.exact() > 0 || keep.draws().is_some(), "a selection keeps at least one token");
        assert!(keep.draws() != Some(0), "a selection draws at least once");
        let positive = |number: f32| number > 0.0 && number.is_finite();
        assert!(positive(logit_scale), "a logit scale is positive, found {logit_scale}");
        let bad = temperatures.iter().find(|&&temperature| !positive(temperature));
        assert!(bad.is_none(), "a temperature is positive, found {bad:?}");
    }
}
