//! One row out of a row group: decompresses only the pages that hold its values.

use std::ops::Range;

use super::groups::check_ids;
use super::reader::ShardReader;
use super::schema::{COUNTS, INPUT_IDS, LabelColumns, POSITIONS, SOURCE, TOKEN_IDS};
use crate::values::{Error, LabelLimits, ReadLimits, SequenceKey, SequenceLabels, Validator};

/// Where a row lies in its row group, as the index of the dataset knows.
#[derive(Clone, Debug)]
pub(crate) struct RowPlace {
    pub(crate) row: usize,
    pub(crate) key: SequenceKey,
    /// In `input_ids`.
    pub(crate) inputs: Range<usize>,
    /// In the columns with a value for each labelled position.
    pub(crate) labelled: Range<usize>,
}

/// Decodes and checks one row of a label shard: what is returned passed the checks of a whole row group. The row group
/// was hashed before; rows that are not asked for are not looked at.
pub(crate) fn read_row(
    shard: &ShardReader,
    group: usize,
    place: &RowPlace,
    labels: &LabelLimits,
    limits: &ReadLimits,
) -> Result<SequenceLabels, Error> {
    let at = LabelColumns::of(labels);
    shard.decode(group, |pages, chunks| {
        // Small: a row group has one page of it, mostly a single run. Where entries start follows from the counts.
        let counts = pages.list::<i32>(chunks[COUNTS])?;
        let labelled = &place.labelled;
        let entries = entries(&counts.values, labelled, |count| count)?;
        let exact = self::entries(&counts.values, labelled, |count| labels.exact(count))?;
        if counts.row(place.row).len() != labelled.len() {
            let expected = format!("{} values", labelled.len());
            let name = format!("row {} counts", place.row);
            return Err(Error::bad(name, expected, counts.row_len(place.row)));
        }
        let mut sources = pages.texts(chunks[SOURCE])?;
        // Small as well, and rows of it may be empty: decoded whole.
        let sample_counts = match at.sample_counts {
            Some(column) => pages.list::<i32>(chunks[column])?.row(place.row).to_vec(),
            None => Vec::new(),
        };
        let mut floats = |column: Option<usize>, range| match column {
            Some(column) => pages.list_row::<f32>(chunks[column], range),
            None => Ok(Vec::new()),
        };
        let log_probs = floats(at.log_probs, &exact)?;
        let log_sum_exp = floats(at.log_sum_exp, labelled)?;
        let tail_log_mass = floats(at.tail_log_mass, labelled)?;
        let entropy = floats(at.entropy, labelled)?;
        let gold_log_prob = floats(at.gold_log_prob, labelled)?;
        let mut columns = |range: Range<usize>| -> Result<Vec<Vec<f32>>, Error> {
            range.map(|column| floats(Some(column), labelled)).collect()
        };
        let this = SequenceLabels {
            source: sources.swap_remove(place.row),
            log_partitions: columns(at.log_partitions)?,
            tail_log_masses: columns(at.tail_log_masses)?,
            input_ids: pages.list_row(chunks[INPUT_IDS], &place.inputs)?,
            positions: pages.list_row(chunks[POSITIONS], labelled)?,
            counts: counts.row(place.row).to_vec(),
            token_ids: pages.list_row(chunks[TOKEN_IDS], &entries)?,
            log_probs,
            sample_counts,
            log_sum_exp,
            tail_log_mass,
            entropy,
            gold_log_prob,
        };
        check_ids(&this.input_ids, place.key, limits)
            .and_then(|()| Validator::new(labels).labels(&(&this).into()))
            .map_err(|error| error.within(format_args!("row {}", place.row)))?;
        Ok(this)
    })
}

/// Entries of the positions `labelled`, of which `of` counts some.
fn entries(
    counts: &[i32],
    labelled: &Range<usize>,
    of: impl Fn(usize) -> usize,
) -> Result<Range<usize>, Error> {
    let bad = || Error::bad("counts", "counts of all rows", "too few, or one below 0");
    let sum = |part: Option<&[i32]>| {
        let mut counts = part?.iter().map(|count| usize::try_from(*count).ok());
        counts.try_fold(0usize, |sum, count| sum.checked_add(of(count?)))
    };
    let start = sum(counts.get(..labelled.start)).ok_or_else(bad)?;
    let size = sum(counts.get(labelled.clone())).ok_or_else(bad)?;
    Ok(start..start.checked_add(size).ok_or_else(bad)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_that_say_nothing_of_a_row_are_refused() {
        assert_eq!(entries(&[2, 3, 4], &(1..3), |count| count).unwrap(), 2..9);
        for (counts, labelled) in
            [([2, 3, 4], 1..4), ([-1, 3, 4], 1..2), ([1, -3, 4], 1..2), ([1, 3, 4], 4..5)]
        {
            let error = entries(&counts, &labelled, |count| count).unwrap_err().to_string();
            assert_eq!(error, "counts: expected counts of all rows, found too few, or one below 0");
        }
    }
}
