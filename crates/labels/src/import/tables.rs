//! Rows out of Parquet files by a mapping of columns.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::columns::{Cell, ForeignFile};
use super::rows::{ForeignPosition, ForeignRow, PositionRule, Rows, bits_of, or_bad};
use crate::values::Error;
use std::ops::Range;

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
        // What is in the columns of a row is read whole, so that the next row begins where it should.
        let mapped = match Mapped::read(file, map) {
            Ok(mapped) => mapped,
            Err(error) => return Some(Err(error)),
        };
        Some(or_bad(mapped.row(map, &place, source).map_err(|error| error.within(&place))))
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
        self.ints.iter().try_for_each(|(key, cell)| cell.check_nulls(&map.columns[key]))?;
        self.floats.iter().try_for_each(|(key, cell)| cell.check_nulls(&map.columns[key]))?;
        let input_ids = small(&self.ints["input_ids"].values, &map.columns["input_ids"])?;
        let ids = &self.ints["token_ids"];
        let values = self.floats.get("log_probs").or_else(|| self.floats.get("logits"));
        let values = values.ok_or_else(|| Error::bad("log_probs", "a column", "none"))?;
        let ranges = self.ranges(ids, values, input_ids.len(), map.rule)?;
        let slots = slots(input_ids.len(), ranges.len(), map.rule, self.ints.get("positions"))?;
        let counts = self.counted(&input_ids)?;
        let mut positions = Vec::with_capacity(ranges.len());
        for (index, (slot, range)) in slots.into_iter().zip(&ranges).enumerate() {
            let Some(position) =
                slot.filter(|position| counts.as_ref().is_none_or(|counts| counts[*position]))
            else {
                continue;
            };
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
                if cell.values.len() != ranges.len() || cell.ends.is_some() {
                    let place = format!("column `{}`", map.columns[key]);
                    let expected = format!("{} numbers", ranges.len());
                    return Err(Error::bad(place, expected, cell.values.len()));
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
                raw_bits: None,
            };
            // What is taken from every value to make it a log-probability of the whole vocabulary.
            let (offset, of) = match (map.has("logits"), map.are_normalised) {
                (true, _) => (one.log_sum_exp.unwrap_or(f64::NAN), one.log_sum_exp),
                (_, true) => (-(-one.tail_log_mass.unwrap_or(f64::NAN).exp()).ln_1p(), one.tail_log_mass),
                _ => (0.0, None),
            };
            let kept = small(&ids.values[range.clone()], &map.columns["token_ids"])?;
            let values = &values.values[range.clone()];
            // A difference of rounded numbers does not look rounded.
            one.raw_bits =
                Some([bits_of(values.iter().copied()), of.map_or(u32::MAX, |value| bits_of([value]))]);
            one.entries = kept.into_iter().zip(values.iter().map(|value| value - offset)).collect();
            positions.push(one);
        }
        let source = self.source.clone().unwrap_or(source);
        Ok(ForeignRow { place: place.to_owned(), source, input_ids, positions })
    }

    /// Where the entries of each place stand, in the flattened lists.
    fn ranges(
        &self,
        ids: &Cell<i64>,
        values: &Cell<f64>,
        length: usize,
        rule: PositionRule,
    ) -> Result<Vec<Range<usize>>, Error> {
        if ids.values.len() != values.values.len()
            || (ids.ends.is_some() && values.ends.is_some() && ids.ends != values.ends)
        {
            let expected = format!("as many values as ids: {}", ids.values.len());
            return Err(Error::bad("log_probs", expected, values.values.len()));
        }
        let counts = self.ints.get("counts").map(|cell| cell.values.as_slice());
        let ends = match (ids.ends.as_ref().or(values.ends.as_ref()), counts) {
            (Some(ends), Some(counts)) => return counted_lists(ends, counts),
            (Some(ends), None) => ends.clone(),
            (None, Some(counts)) => ends_of(counts, ids.values.len())?,
            (None, None) => {
                let positions = self.ints.get("positions").map(|positions| positions.values.len());
                let places = places_of(ids.values.len(), length, rule, positions)?;
                (1..=places).map(|place| place * (ids.values.len() / places)).collect()
            }
        };
        Ok(lists(&ends).collect())
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

/// Lists of which each ends where the next one starts.
fn lists(ends: &[usize]) -> impl Iterator<Item = Range<usize>> + '_ {
    let starts = std::iter::once(0).chain(ends.iter().copied());
    starts.zip(ends).map(|(start, end)| start..*end)
}

/// The first entries of each inner list, as many as its count says: what follows is padding.
fn counted_lists(ends: &[usize], counts: &[i64]) -> Result<Vec<Range<usize>>, Error> {
    if counts.len() != ends.len() {
        let expected = format!("{} of them, as token_ids has lists", ends.len());
        return Err(Error::bad("counts", expected, counts.len()));
    }
    let part = |(index, (list, count)): (usize, (Range<usize>, &i64))| {
        let kept = usize::try_from(*count).ok().filter(|count| *count <= list.len());
        kept.map(|count| list.start..list.start + count).ok_or_else(|| {
            let expected = format!("at most the {} entries of the list", list.len());
            Error::bad(format_args!("counts[{index}]"), expected, count)
        })
    };
    lists(ends).zip(counts).enumerate().map(part).collect()
}

/// Where the lists of a flat one end, that has `total` entries.
fn ends_of(counts: &[i64], total: usize) -> Result<Vec<usize>, Error> {
    let mut end = 0usize;
    let mut add = |count: &i64| {
        end = end.checked_add(usize::try_from(*count).ok()?).filter(|end| *end <= total)?;
        Some(end)
    };
    let ends: Option<Vec<usize>> = counts.iter().map(&mut add).collect();
    ends.filter(|ends| ends.last().copied().unwrap_or(0) == total)
        .ok_or_else(|| Error::bad("counts", format_args!("counts whose sum is {total}"), "another sum"))
}

/// How many places share `total` entries evenly, where nothing says how many each has.
fn places_of(
    total: usize,
    length: usize,
    rule: PositionRule,
    positions: Option<usize>,
) -> Result<usize, Error> {
    let places = positions.unwrap_or(length);
    // The last token's entries describe none, so a file may lack them.
    let fewer = (rule == PositionRule::Next && positions.is_none()).then(|| places.saturating_sub(1));
    let fits = |places: &usize| *places > 0 && total.is_multiple_of(*places);
    let hint = "map `counts`, or give token_ids as lists in lists";
    match (Some(places).filter(fits), fewer.filter(fits)) {
        (Some(places), Some(fewer)) if total > 0 => {
            let expected = format!("entries that {places} or {fewer} places share evenly, not both");
            Err(Error::bad("token_ids", expected, total).hint(hint))
        }
        (Some(places), _) | (None, Some(places)) => Ok(places),
        (None, None) => {
            let expected = format!("as many for each of {places} places");
            Err(Error::bad("token_ids", expected, total).hint(hint))
        }
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
            let place = usize::try_from(*position).ok().and_then(|position| position.checked_add(shift));
            place.and_then(within).map(Some).ok_or_else(|| {
                let expected = format!("a position in {}..{}", 1 - shift, length.saturating_sub(shift));
                Error::bad(format_args!("positions[{index}]"), expected, position)
            })
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
