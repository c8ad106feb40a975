//! Rows out of Parquet files by a mapping of columns.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::columns::{Cell, ForeignFile};
use super::rows::{ForeignPosition, ForeignRow, PositionRule};
use crate::Error;

/// Our names for what columns of others may hold.
const KEYS: [&str; 13] = [
    "input_ids",
    "token_ids",
    "log_probs",
    "logits",
    "counts",
    "positions",
    "loss_mask",
    "labels",
    "log_sum_exp",
    "tail_log_mass",
    "entropy",
    "gold_log_prob",
    "source",
];

/// Which column of a Parquet file holds what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnMap {
    columns: BTreeMap<&'static str, String>,
    rule: PositionRule,
    are_normalised: bool,
}

impl ColumnMap {
    /// Makes a mapping of pairs `key=column`.
    ///
    /// Keys: `input_ids` and `token_ids`; `log_probs`, or `logits` with `log_sum_exp`; and, where a file has them,
    /// `counts`, `positions`, `loss_mask` (0 and 1) or `labels` (-100 where nothing counts), `log_sum_exp`,
    /// `tail_log_mass`, `entropy`, `gold_log_prob`, `source`. `are_normalised` says that log-probabilities are those among
    /// the kept entries: then `tail_log_mass` is needed to know what they were.
    ///
    /// # Errors
    /// [`Error::Bad`] naming a key that is unknown, twice, or needed and not there.
    pub fn new(
        pairs: impl IntoIterator<Item = (String, String)>,
        rule: PositionRule,
        are_normalised: bool,
    ) -> Result<Self, Error> {
        let mut columns = BTreeMap::new();
        for (key, column) in pairs {
            let Some(known) = KEYS.iter().find(|known| **known == key) else {
                return Err(Error::bad(
                    "column mapping",
                    format_args!("one of {}", KEYS.join(", ")),
                    format_args!("`{key}`"),
                ));
            };
            if columns.insert(*known, column).is_some() {
                return Err(Error::bad("column mapping", "every key once", format_args!("`{key}` twice")));
            }
        }
        let has = |key: &str| columns.contains_key(key);
        let lacks = |expected: &str| Err(Error::bad("column mapping", expected, "none"));
        for needed in ["input_ids", "token_ids"] {
            if !has(needed) {
                return lacks(&format!("a column for `{needed}`"));
            }
        }
        match (has("log_probs"), has("logits")) {
            (true, false) => {}
            (false, true) if has("log_sum_exp") => {}
            (false, true) => return lacks("a column for `log_sum_exp`, as there are logits"),
            _ => return lacks("a column for `log_probs`, or one for `logits`, not both"),
        }
        if are_normalised && !(has("tail_log_mass") && has("log_probs")) {
            return lacks(
                "a column for `tail_log_mass`, as log_probs were normalised over the kept entries,",
            );
        }
        if ["positions", "loss_mask", "labels"].iter().filter(|key| has(key)).count() > 1 {
            return Err(Error::bad("column mapping", "one of `positions`, `loss_mask` and `labels`", "more"));
        }
        Ok(Self { columns, rule, are_normalised })
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.columns.contains_key(key)
    }
}

/// Rows of some files, one file after another.
pub(super) struct Files<'a> {
    pub(super) paths: std::slice::Iter<'a, PathBuf>,
    pub(super) names: Vec<String>,
    pub(super) optional: &'static [&'static str],
    pub(super) open: Option<ForeignFile>,
}

impl Files<'_> {
    /// Goes to the next row of the next file that has one.
    pub(super) fn next(&mut self) -> Result<Option<(&mut ForeignFile, u64)>, Error> {
        loop {
            let row = match &mut self.open {
                Some(file) => file.next_row()?,
                None => None,
            };
            if let Some(row) = row {
                return Ok(self.open.as_mut().map(|file| (file, row)));
            }
            let Some(path) = self.paths.next() else { return Ok(None) };
            self.open = Some(ForeignFile::open(path, &self.names, self.optional)?);
        }
    }
}

/// Rows that the files have, as they say.
pub(crate) fn count_rows(files: &[PathBuf]) -> Result<u64, Error> {
    files.iter().map(|path| Ok(ForeignFile::open(path, &[], &[])?.rows())).sum()
}

pub(super) type Rows<'a> = Box<dyn Iterator<Item = Result<ForeignRow, Error>> + 'a>;

/// Rows of files with the columns of a mapping.
pub(crate) fn mapped<'a>(files: &'a [PathBuf], map: &'a ColumnMap) -> Rows<'a> {
    let names = map.columns.values().cloned().collect();
    let mut files = Files { paths: files.iter(), names, optional: &[], open: None };
    Box::new(std::iter::from_fn(move || {
        let (file, row) = match files.next() {
            Ok(found) => found?,
            Err(error) => return Some(Err(error)),
        };
        let place = format!("{} row {row}", file.place);
        let source = format!("{}:{row}", file.name);
        Some(
            Mapped::read(file, map)
                .and_then(|mapped| mapped.row(map, &place, source).map_err(|error| error.within(&place))),
        )
    }))
}

/// The cells of a row of a mapping.
struct Mapped {
    ints: BTreeMap<&'static str, Cell<i64>>,
    floats: BTreeMap<&'static str, Cell<f64>>,
    source: Option<String>,
}

impl Mapped {
    fn read(file: &mut ForeignFile, map: &ColumnMap) -> Result<Self, Error> {
        let mut this = Self { ints: BTreeMap::new(), floats: BTreeMap::new(), source: None };
        for (index, key) in map.columns.keys().enumerate() {
            match *key {
                "source" => this.source = file.text(index)?,
                "input_ids" | "token_ids" | "counts" | "positions" | "loss_mask" | "labels" => {
                    this.ints.extend(file.ints(index)?.map(|cell| (*key, cell)));
                }
                _ => this.floats.extend(file.floats(index)?.map(|cell| (*key, cell))),
            }
        }
        Ok(this)
    }

    fn row(&self, map: &ColumnMap, place: &str, source: String) -> Result<ForeignRow, Error> {
        let input_ids = small(&self.ints["input_ids"].values, &map.columns["input_ids"])?;
        let ids = &self.ints["token_ids"];
        let values = self.floats.get("log_probs").or_else(|| self.floats.get("logits"));
        let values = values.ok_or_else(|| Error::bad("log_probs", "a column", "none"))?;
        let ends = self.ends(ids, values, input_ids.len())?;
        let slots = slots(input_ids.len(), ends.len(), map.rule, self.ints.get("positions"))?;
        let counts = self.counted(&input_ids)?;
        let mut positions = Vec::with_capacity(ends.len());
        for (index, slot) in slots.into_iter().enumerate() {
            let Some(position) =
                slot.filter(|position| counts.as_ref().is_none_or(|counts| counts[*position]))
            else {
                continue;
            };
            let range = if index == 0 { 0 } else { ends[index - 1] }..ends[index];
            if range.is_empty() {
                if counts.is_none() {
                    continue;
                }
                let place = format!("position {position} token_ids");
                let hint = "entries are elsewhere than the loss: is --position-rule right?";
                return Err(Error::bad(place, "entries, as the loss counts there", "none").hint(hint));
            }
            let number = |key: &str| -> Result<Option<f64>, Error> {
                let Some(cell) = self.floats.get(key) else { return Ok(None) };
                if cell.values.len() != ends.len() || cell.ends.is_some() {
                    let place = format!("column `{}`", map.columns[key]);
                    return Err(Error::bad(place, format_args!("{} numbers", ends.len()), cell.values.len()));
                }
                Ok(Some(cell.values[index]))
            };
            let mut one = ForeignPosition {
                position,
                entries: Vec::new(),
                log_sum_exp: number("log_sum_exp")?,
                tail_log_mass: number("tail_log_mass")?,
                entropy: number("entropy")?,
                gold_log_prob: number("gold_log_prob")?,
            };
            // What is taken from every value to make it a log-probability of the whole vocabulary.
            let offset = match (map.has("logits"), map.are_normalised) {
                (true, _) => one.log_sum_exp.unwrap_or(f64::NAN),
                (_, true) => -(-one.tail_log_mass.unwrap_or(f64::NAN).exp()).ln_1p(),
                _ => 0.0,
            };
            let kept = small(&ids.values[range.clone()], &map.columns["token_ids"])?;
            one.entries =
                kept.into_iter().zip(values.values[range].iter().map(|value| value - offset)).collect();
            positions.push(one);
        }
        let source = self.source.clone().unwrap_or(source);
        Ok(ForeignRow { place: place.to_owned(), source, input_ids, positions })
    }

    /// Where the entries of each place end, in the flattened lists.
    fn ends(&self, ids: &Cell<i64>, values: &Cell<f64>, length: usize) -> Result<Vec<usize>, Error> {
        if ids.values.len() != values.values.len()
            || (ids.ends.is_some() && values.ends.is_some() && ids.ends != values.ends)
        {
            let expected = format!("as many values as ids: {}", ids.values.len());
            return Err(Error::bad("log_probs", expected, values.values.len()));
        }
        if let Some(ends) = ids.ends.clone().or_else(|| values.ends.clone()) {
            return Ok(ends);
        }
        let total = ids.values.len();
        if let Some(counts) = self.ints.get("counts") {
            let mut end = 0usize;
            let mut add = |count: &i64| {
                end = end.checked_add(usize::try_from(*count).ok()?).filter(|end| *end <= total)?;
                Some(end)
            };
            let ends: Option<Vec<usize>> = counts.values.iter().map(&mut add).collect();
            return ends.filter(|ends| ends.last().copied().unwrap_or(0) == total).ok_or_else(|| {
                Error::bad("counts", format_args!("counts whose sum is {total}"), "another sum")
            });
        }
        // Without counts every place has as many.
        let places = self.ints.get("positions").map_or(length, |positions| positions.values.len());
        let fits = [places, places.saturating_sub(1)]
            .into_iter()
            .find(|places| *places > 0 && total.is_multiple_of(*places));
        let Some(places) = fits else {
            let hint = "map `counts`, or give token_ids as lists in lists";
            return Err(Error::bad("token_ids", format_args!("as many for each of {places} places"), total)
                .hint(hint));
        };
        Ok((1..=places).map(|place| place * (total / places)).collect())
    }

    /// Whether each position counts for the loss.
    fn counted(&self, input_ids: &[i32]) -> Result<Option<Vec<bool>>, Error> {
        let (name, cell, ignored) = match (self.ints.get("loss_mask"), self.ints.get("labels")) {
            (Some(cell), _) => ("loss_mask", cell, 0),
            (_, Some(cell)) => ("labels", cell, -100),
            _ => return Ok(None),
        };
        if cell.values.len() != input_ids.len() {
            return Err(Error::bad(name, format_args!("{} values", input_ids.len()), cell.values.len()));
        }
        Ok(Some(cell.values.iter().map(|value| *value != ignored).collect()))
    }
}

/// The position that each place describes; `None` for one that describes no token of the sequence.
fn slots(
    length: usize,
    places: usize,
    rule: PositionRule,
    positions: Option<&Cell<i64>>,
) -> Result<Vec<Option<usize>>, Error> {
    let shift = usize::from(rule == PositionRule::Next);
    let within = |position: usize| (1..length).contains(&position).then_some(position);
    if let Some(positions) = positions {
        if positions.values.len() != places {
            return Err(Error::bad("positions", format_args!("{places} of them"), positions.values.len()));
        }
        let slot = |(index, position): (usize, &i64)| {
            let found = usize::try_from(*position).ok().and_then(|position| within(position + shift));
            let expected = format!("a position in {}..{}", 1 - shift, length - shift);
            found.map(Some).ok_or_else(|| Error::bad(format_args!("positions[{index}]"), expected, position))
        };
        return positions.values.iter().enumerate().map(slot).collect();
    }
    let lacks = length - places.min(length);
    match rule {
        _ if places == length => Ok((0..places).map(|place| within(place + shift)).collect()),
        // The last token is described by the place before it.
        PositionRule::Next if lacks == 1 => Ok((1..length).map(Some).collect()),
        _ => {
            let expected = if shift == 0 {
                length.to_string()
            } else {
                format!("{} or {length}", length.saturating_sub(1))
            };
            Err(Error::bad(
                "token_ids",
                format_args!("entries at {expected} places, as there are {length} tokens"),
                places,
            ))
        }
    }
}

/// Ids that fit the format.
pub(super) fn small(values: &[i64], column: &str) -> Result<Vec<i32>, Error> {
    let id = |value: &i64| {
        i32::try_from(*value)
            .ok()
            .filter(|id| *id >= 0)
            .ok_or_else(|| Error::bad(format_args!("column `{column}`"), "ids in 0..2147483648", value))
    };
    values.iter().map(id).collect()
}
