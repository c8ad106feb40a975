//! The first reading of foreign labels: every row is checked, and the plan is found.

use std::collections::BTreeMap;

use super::rows::{ForeignRow, Kind, RowsHash, bits_of};
use super::{ImportSource, ImportTarget, progress};
use crate::dataset::{APPROXIMATE_TAIL, LabelPlan};
use crate::observer::Observer;
use crate::values::{Error, LabelLimits, Selection, SequenceLabels};

/// Positions from which on it counts where gold tokens are found.
const ENOUGH: u64 = 64;
/// Kept mass that is 1 for a sum of rounded numbers.
const WHOLE: f64 = 1e-6;
/// Kept mass above 1, or below the one that was asked for, that comes of rounding alone.
const ROUNDING: f64 = 1e-3;
/// Mantissa bits that are 0 in every log-probability which was rounded to 12 bits or fewer, as f16 and bf16 are.
const ROUNDED_AWAY: u32 = 0x7FF;

/// What was seen of the rows so far.
pub(crate) struct Survey<'a> {
    target: &'a ImportTarget,
    kind: &'a Kind,
    observer: &'a dyn Observer,
    limits: LabelLimits,
    total: u64,
    rows: u64,
    passed_over: u64,
    content: RowsHash,
    /// What `content` was behind each whole shard.
    shard_hashes: Vec<blake3::Hash>,
    /// Entries of the first position, and the first place with another number.
    entries: Option<usize>,
    most_entries: usize,
    ragged: Option<String>,
    positions: u64,
    /// Positions whose kept entries hold the token before, the token there, and the one behind.
    hits: [u64; 3],
    /// Positions where entries that are not all of the vocabulary have all of the mass.
    whole: u64,
    /// Least kept mass of positions with a number of entries, and where it is.
    least_mass: BTreeMap<usize, (f64, String)>,
    /// All bits that any value has, and any number that was taken from values; and whether a tail is computed of them.
    bits: [u32; 2],
    computes_tail: bool,
    /// Positions whose entries have more than all of the mass.
    above_one: u64,
}

impl<'a> Survey<'a> {
    pub(crate) fn new(
        source: &ImportSource<'_>,
        target: &'a ImportTarget,
        kind: &'a Kind,
        observer: &'a dyn Observer,
    ) -> Result<Self, Error> {
        let limits = LabelLimits {
            input_vocab_size: target.tokenizer.vocab_size,
            label_vocab_size: target.teacher.vocab_size,
            entries_per_position: [1, target.teacher.vocab_size],
            exact_entries: u32::MAX,
            draws: None,
            omit: kind.omit.clone(),
            temperatures: 0,
            tails: false,
        };
        Ok(Self {
            target,
            kind,
            observer,
            limits,
            total: source.row_count()?,
            rows: 0,
            passed_over: 0,
            content: RowsHash::default(),
            shard_hashes: Vec::new(),
            entries: None,
            most_entries: 0,
            ragged: None,
            positions: 0,
            hits: [0; 3],
            whole: 0,
            least_mass: BTreeMap::new(),
            bits: [0; 2],
            computes_tail: false,
            above_one: 0,
        })
    }

    /// Checks a row.
    pub(crate) fn add(&mut self, row: &ForeignRow) -> Result<(), Error> {
        progress(self.observer, "check", self.rows + self.passed_over + 1, self.total);
        if row.positions.is_empty() {
            self.passed_over += 1;
            return Ok(());
        }
        let labels = self.labels(row)?;
        self.content.add(&labels);
        self.rows += 1;
        if self.rows.is_multiple_of(self.target.sequences_per_shard.max(1)) {
            self.shard_hashes.push(self.content.so_far());
        }
        self.count(row, &labels);
        Ok(())
    }

    /// The labels of a row, checked.
    pub(crate) fn labels(&self, row: &ForeignRow) -> Result<SequenceLabels, Error> {
        let labels = row.labels(self.kind)?;
        row.check(&labels, &self.limits, self.kind)?;
        Ok(labels)
    }

    fn count(&mut self, row: &ForeignRow, labels: &SequenceLabels) {
        self.computes_tail |= row.positions.iter().any(|one| one.tail_log_mass.is_none());
        for (one, tail) in row.positions.iter().zip(&labels.tail_log_mass) {
            let entries = one.entries.len();
            self.positions += 1;
            self.most_entries = self.most_entries.max(entries);
            let expected = *self.entries.get_or_insert(entries);
            if entries != expected && self.ragged.is_none() {
                self.ragged = Some(format!("{entries} at {} position {}", row.place, one.position));
            }
            let kept: f64 = one.entries.iter().map(|(_, log_prob)| log_prob.exp()).sum();
            self.above_one += u64::from(kept > 1.0 + ROUNDING);
            self.note_mass(entries, kept, row, one.position);
            let log_probs = one.entries.iter().map(|(_, log_prob)| *log_prob);
            let [values, offsets] = one.raw_bits.unwrap_or_else(|| [bits_of(log_probs), u32::MAX]);
            self.bits = [self.bits[0] | values, self.bits[1] | offsets];
            let is_all = u32::try_from(entries).is_ok_and(|entries| entries >= self.kind.vocab_size);
            self.whole += u64::from(!is_all && f64::from(*tail) < WHOLE.ln());
            let holds = |token: Option<&i32>| {
                token.is_some_and(|token| one.entries.iter().any(|(id, _)| id == token))
            };
            let before = one.position.checked_sub(1).and_then(|position| row.input_ids.get(position));
            let around = [before, row.input_ids.get(one.position), row.input_ids.get(one.position + 1)];
            for (hits, token) in self.hits.iter_mut().zip(around) {
                *hits += u64::from(holds(token));
            }
        }
    }

    fn note_mass(&mut self, entries: usize, kept: f64, row: &ForeignRow, position: usize) {
        if self.target.top_p.is_some() && self.least_mass.get(&entries).is_none_or(|(least, _)| kept < *least)
        {
            self.least_mass.insert(entries, (kept, format!("{} position {position}", row.place)));
        }
    }

    /// What [`RowsHash`] is behind each shard.
    pub(crate) fn shard_hashes(&self) -> Vec<blake3::Hash> {
        let mut hashes = self.shard_hashes.clone();
        if !self.rows.is_multiple_of(self.target.sequences_per_shard.max(1)) {
            hashes.push(self.content.so_far());
        }
        hashes
    }

    pub(crate) fn passed_over(&self) -> u64 {
        self.passed_over
    }

    pub(crate) fn above_one(&self) -> u64 {
        self.above_one
    }

    /// The plan of what was seen.
    pub(crate) fn plan(&self) -> Result<LabelPlan, Error> {
        let Some(entries) = self.entries else {
            return Err(Error::bad("files", "at least one labelled position", "none"));
        };
        self.check_shift()?;
        self.check_mass()?;
        self.check_top_p()?;
        let most = u32::try_from(self.most_entries)
            .map_err(|_| Error::bad("entries", "fewer", self.most_entries))?;
        let selection = match (&self.ragged, self.target.top_p) {
            (_, Some(p)) => Selection::TopP { p, k: most },
            (None, None) => Selection::TopK { k: most },
            (Some(found), None) => {
                let hint = "--top-p says which mass they reach, where their number differs";
                let expected = format!("{entries} everywhere, as at the first position");
                return Err(Error::bad("entries", expected, found).hint(hint));
            }
        };
        let target = self.target;
        let mut teacher = target.teacher.clone();
        if self.kind.is_approximate && self.computes_tail {
            teacher.config_blake3 += APPROXIMATE_TAIL;
        }
        let plan = LabelPlan {
            format: LabelPlan::FORMAT.to_owned(),
            version: LabelPlan::VERSION,
            sequences: self.content.so_far().to_hex().to_string(),
            shards: LabelPlan::ranges(self.rows, target.sequences_per_shard.max(1)),
            split: target.split.clone(),
            tokenizer: target.tokenizer.clone(),
            template: target.template.clone(),
            teacher,
            selection,
            mantissa_bits: target.mantissa_bits,
            position_mantissa_bits: LabelPlan::DEFAULT_POSITION_MANTISSA_BITS,
            omit: self.kind.omit.clone(),
            temperatures: Vec::new(),
            seed: 0,
            row_group_tokens: LabelPlan::DEFAULT_ROW_GROUP_TOKENS,
        };
        plan.validate()?;
        Ok(plan)
    }

    /// Refuses log-probabilities that do not say how much was cut off.
    fn check_mass(&self) -> Result<(), Error> {
        if self.positions < ENOUGH {
            return Ok(());
        }
        if self.whole == self.positions {
            let hint = "if they were normalised over the kept entries, say so (--normalised) and map `tail_log_mass`";
            let found = "a kept mass of 1 at every position";
            return Err(Error::bad("log_probs", "log-probabilities of the full vocabulary", found).hint(hint));
        }
        if self.computes_tail
            && !self.kind.is_approximate
            && self.bits.iter().any(|bits| bits & ROUNDED_AWAY == 0)
        {
            let hint = "map `tail_log_mass`, or compute it all the same with --approximate-tail";
            let found = "ones that were rounded, as to half precision";
            return Err(
                Error::bad("tail_log_mass", "exact log-probabilities to compute it of", found).hint(hint)
            );
        }
        Ok(())
    }

    /// Refuses positions with fewer entries than others that do not reach the mass which `top_p` says.
    fn check_top_p(&self) -> Result<(), Error> {
        let Some(p) = self.target.top_p else { return Ok(()) };
        let fewer = self.least_mass.range(..self.most_entries).map(|(_, least)| least);
        match fewer.min_by(|(one, _), (other, _)| one.total_cmp(other)) {
            Some((mass, place)) if *mass < p - ROUNDING => {
                let expected =
                    format!("a mass of {p}, as there are fewer than {} entries", self.most_entries);
                let hint =
                    "--top-p says which mass entries reach wherever their number is below the greatest";
                Err(Error::bad(format_args!("{place} log_probs"), expected, format_args!("{mass:.6}"))
                    .hint(hint))
            }
            _ => Ok(()),
        }
    }

    /// Refuses entries that hold the tokens of a neighbouring position far more often than those of their own.
    fn check_shift(&self) -> Result<(), Error> {
        let [before, here, behind] = self.hits;
        let most = before.max(behind);
        // Twice three standard deviations of a difference of counts.
        let is_clear = most > here && (most - here).pow(2) > 36 * (most + here);
        if self.positions < ENOUGH || !is_clear {
            return Ok(());
        }
        let (which, hint) = if behind > before {
            ("next", "entries at t seem to describe token t+1: --position-rule next")
        } else {
            ("previous", "entries at t seem to describe token t: --position-rule this")
        };
        let expected = format!(
            "entries that hold the token they describe more often than its neighbours ({here} of {} positions)",
            self.positions
        );
        Err(Error::bad("token_ids", expected, format_args!("the {which} token at {most}")).hint(hint))
    }
}
