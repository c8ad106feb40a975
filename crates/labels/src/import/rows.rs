//! Labels of other programs, before they are ours.

use crate::values::{Bad, Error, LabelLimits, OptionalColumn, SequenceLabels};

/// Kept mass that fitted log-probabilities may have: DistillKit's recommended curve was seen to give 1.06. More is no fit.
const MOST_MASS: f64 = 1.5;

/// Where the entries of a place in a list belong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PositionRule {
    /// Entries at t describe token t, given the tokens before it: our rule.
    This,
    /// Entries at t describe token t+1: what a model's output at t is.
    Next,
}

/// The labels of one sequence.
#[derive(Clone, Debug)]
pub(crate) struct ForeignRow {
    /// In messages: file and row.
    pub(crate) place: String,
    /// What the column `source` gets.
    pub(crate) source: String,
    pub(crate) input_ids: Vec<i32>,
    /// Ascending, by our rule; a row without any is passed over.
    pub(crate) positions: Vec<ForeignPosition>,
}

/// A row, or what is wrong with it: the rows behind it can still be read.
pub(crate) type RowOrBad = Result<ForeignRow, Box<Bad>>;

/// All rows of a source, from the first; an error is one of the source, behind which nothing can be read.
pub(crate) type Rows<'a> = Box<dyn Iterator<Item = Result<RowOrBad, Error>> + 'a>;

/// Takes bad data for what is wrong with a row, and leaves other errors what they are.
pub(crate) fn or_bad<T>(row: Result<T, Error>) -> Result<Result<T, Box<Bad>>, Error> {
    match row {
        Ok(row) => Ok(Ok(row)),
        Err(Error::Bad(bad)) => Ok(Err(bad)),
        Err(error) => Err(error),
    }
}

/// What a row says of one position.
#[derive(Clone, Debug, Default)]
pub(crate) struct ForeignPosition {
    pub(crate) position: usize,
    /// Ids and log-probabilities, in any order.
    pub(crate) entries: Vec<(i32, f64)>,
    pub(crate) log_sum_exp: Option<f64>,
    pub(crate) tail_log_mass: Option<f64>,
    pub(crate) entropy: Option<f64>,
    pub(crate) gold_log_prob: Option<f64>,
    /// All bits that the numbers have which entries were computed of: the values, and what was taken from them. None where
    /// entries are as they stood.
    pub(crate) raw_bits: Option<[u32; 2]>,
}

/// What all rows of a source have in common.
#[derive(Clone, Debug)]
pub(crate) struct Kind {
    /// Columns that it does not have.
    pub(crate) omit: Vec<OptionalColumn>,
    /// Whether log-probabilities were rounded or approximated before.
    pub(crate) is_approximate: bool,
    /// Of the teacher: more ids than this have no probability.
    pub(crate) vocab_size: u32,
}

impl ForeignRow {
    /// Our labels: entries in order, and the tail from the exact values where the row does not give it.
    pub(crate) fn labels(&self, kind: &Kind) -> Result<SequenceLabels, Error> {
        let count = self.positions.len();
        let mut labels = SequenceLabels {
            source: Some(self.source.clone()),
            input_ids: self.input_ids.clone(),
            positions: Vec::with_capacity(count),
            counts: Vec::with_capacity(count),
            token_ids: Vec::new(),
            log_probs: Vec::new(),
            sample_counts: Vec::new(),
            log_sum_exp: Vec::new(),
            tail_log_mass: Vec::with_capacity(count),
            entropy: Vec::new(),
            gold_log_prob: Vec::new(),
            log_partitions: Vec::new(),
            tail_log_masses: Vec::new(),
        };
        for one in &self.positions {
            one.push_to(&mut labels, kind)
                .map_err(|error| error.within(format_args!("{} position {}", self.place, one.position)))?;
        }
        Ok(labels)
    }

    /// Checks labels that [`ForeignRow::labels`] gave.
    pub(crate) fn check(
        &self,
        labels: &SequenceLabels,
        limits: &LabelLimits,
        kind: &Kind,
    ) -> Result<(), Error> {
        let exact =
            |labels: &SequenceLabels| if kind.is_approximate { Ok(()) } else { labels.validate_exact() };
        labels.validate(limits).and_then(|()| exact(labels)).map_err(|error| error.within(&self.place))
    }
}

impl ForeignPosition {
    fn push_to(&self, labels: &mut SequenceLabels, kind: &Kind) -> Result<(), Error> {
        let mut entries = self.entries.clone();
        if let Some((id, log_prob)) = entries.iter().find(|(_, log_prob)| !log_prob.is_finite()) {
            return Err(Error::bad("log_probs", format_args!("a finite number for id {id}"), log_prob));
        }
        entries.sort_by(|one, next| next.1.total_cmp(&one.1).then(one.0.cmp(&next.0)));
        let position = i32::try_from(self.position);
        labels.positions.push(position.map_err(|_| Error::bad("position", "below 2^31", self.position))?);
        labels
            .counts
            .push(i32::try_from(entries.len()).map_err(|_| Error::bad("entries", "fewer", entries.len()))?);
        labels.token_ids.extend(entries.iter().map(|(id, _)| id));
        labels.log_probs.extend(entries.iter().map(|(_, log_prob)| single(*log_prob)));
        let tail = match self.tail_log_mass {
            Some(tail) => tail,
            None => tail_of(&entries, kind)?,
        };
        labels.tail_log_mass.push(single(tail));
        for (column, name, value, to) in [
            (OptionalColumn::LogSumExp, "log_sum_exp", self.log_sum_exp, &mut labels.log_sum_exp),
            (OptionalColumn::Entropy, "entropy", self.entropy, &mut labels.entropy),
            (OptionalColumn::GoldLogProb, "gold_log_prob", self.gold_log_prob, &mut labels.gold_log_prob),
        ] {
            if !kind.omit.contains(&column) {
                to.push(single(value.ok_or_else(|| Error::bad(name, "a number at every position", "none"))?));
            }
        }
        Ok(())
    }
}

/// Logarithm of the mass beyond all entries, in f64: less exact than a teacher's own, as it is a small difference.
fn tail_of(entries: &[(i32, f64)], kind: &Kind) -> Result<f64, Error> {
    let kept: f64 = entries.iter().map(|(_, log_prob)| log_prob.exp()).sum();
    if kind.is_approximate && kept > MOST_MASS {
        return Err(Error::bad(
            "log_probs",
            format_args!("a mass of at most {MOST_MASS}"),
            format_args!("{kept:.4}"),
        ));
    }
    let is_all = u32::try_from(entries.len()).is_ok_and(|count| count >= kind.vocab_size);
    Ok(if is_all { f64::NEG_INFINITY } else { (1.0 - kept).max(0.0).ln() })
}

/// Bits that any of some numbers has, in single precision.
pub(crate) fn bits_of(values: impl IntoIterator<Item = f64>) -> u32 {
    values.into_iter().fold(0, |bits, value| bits | single(value).to_bits())
}

/// What the rows held so far, all of it: two readings of the same files give the same.
#[derive(Clone, Default)]
pub(crate) struct RowsHash(blake3::Hasher);

impl RowsHash {
    pub(crate) fn add(&mut self, labels: &SequenceLabels) {
        let source = labels.source.as_deref().map(str::as_bytes);
        self.0.update(&[u8::from(source.is_some())]);
        self.list(source.unwrap_or_default(), |byte| [*byte]);
        for ints in
            [&labels.input_ids, &labels.positions, &labels.counts, &labels.token_ids, &labels.sample_counts]
        {
            self.list(ints, |value| value.to_le_bytes());
        }
        let columns = [
            &labels.log_probs,
            &labels.log_sum_exp,
            &labels.tail_log_mass,
            &labels.entropy,
            &labels.gold_log_prob,
        ];
        for floats in columns.into_iter().chain(&labels.log_partitions).chain(&labels.tail_log_masses) {
            self.list(floats, |value| value.to_le_bytes());
        }
    }

    /// The length goes first, so that no two lists are one.
    fn list<T, const N: usize>(&mut self, values: &[T], bytes: impl Fn(&T) -> [u8; N]) {
        let length = u64::try_from(values.len()).expect("a length fits 64 bits");
        self.0.update(&length.to_le_bytes());
        let bytes: Vec<u8> = values.iter().flat_map(bytes).collect();
        self.0.update(&bytes);
    }

    pub(crate) fn so_far(&self) -> blake3::Hash {
        self.0.finalize()
    }
}

#[expect(clippy::cast_possible_truncation, reason = "labels are f32")]
fn single(value: f64) -> f32 {
    value as f32
}
