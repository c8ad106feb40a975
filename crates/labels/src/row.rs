//! One row out of a row group: decompresses only the pages that hold its values.

use std::ops::Range;

use crate::groups::check_ids;
use crate::shard_reader::ShardReader;
use crate::shard_schema::{
    COUNTS, ENTROPY, GOLD_LOG_PROB, INPUT_IDS, LOG_PARTITIONS, LOG_PROBS, LOG_SUM_EXP, POSITIONS, SOURCE,
    TAIL_LOG_MASS, TOKEN_IDS,
};
use crate::validate::Validator;
use crate::{Error, LabelLimits, ReadLimits, SequenceKey, SequenceLabels};

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
    shard.decode(group, |pages, chunks| {
        // Small: a row group has one page of it, mostly a single run. Where entries start follows from the counts.
        let counts = pages.list::<i32>(chunks[COUNTS])?;
        let entries = entries(&counts.values, &place.labelled)?;
        if counts.row(place.row).len() != place.labelled.len() {
            let expected = format!("{} values", place.labelled.len());
            let name = format!("row {} counts", place.row);
            return Err(Error::bad(name, expected, counts.row_len(place.row)));
        }
        let mut sources = pages.texts(chunks[SOURCE])?;
        let labelled = &place.labelled;
        let this = SequenceLabels {
            source: sources.swap_remove(place.row),
            input_ids: pages.list_row(chunks[INPUT_IDS], &place.inputs)?,
            positions: pages.list_row(chunks[POSITIONS], labelled)?,
            counts: counts.row(place.row).to_vec(),
            token_ids: pages.list_row(chunks[TOKEN_IDS], &entries)?,
            log_probs: pages.list_row(chunks[LOG_PROBS], &entries)?,
            log_sum_exp: pages.list_row(chunks[LOG_SUM_EXP], labelled)?,
            tail_log_mass: pages.list_row(chunks[TAIL_LOG_MASS], labelled)?,
            entropy: pages.list_row(chunks[ENTROPY], labelled)?,
            gold_log_prob: pages.list_row(chunks[GOLD_LOG_PROB], labelled)?,
            log_partitions: chunks[LOG_PARTITIONS..]
                .iter()
                .map(|chunk| pages.list_row(*chunk, labelled))
                .collect::<Result<_, _>>()?,
            sample_counts: None,
        };
        check_ids(&this.input_ids, place.key, limits)
            .and_then(|()| Validator::new(labels).labels(&(&this).into()))
            .map_err(|error| error.within(format_args!("row {}", place.row)))?;
        Ok(this)
    })
}

/// Entries of the positions `labelled`.
fn entries(counts: &[i32], labelled: &Range<usize>) -> Result<Range<usize>, Error> {
    let bad = || Error::bad("counts", "counts of all rows", "too few, or one below 0");
    let sum = |part: Option<&[i32]>| {
        let mut counts = part?.iter().map(|count| usize::try_from(*count).ok());
        counts.try_fold(0usize, |sum, count| sum.checked_add(count?))
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
        assert_eq!(entries(&[2, 3, 4], &(1..3)).unwrap(), 2..9);
        for (counts, labelled) in
            [([2, 3, 4], 1..4), ([-1, 3, 4], 1..2), ([1, -3, 4], 1..2), ([1, 3, 4], 4..5)]
        {
            let error = entries(&counts, &labelled).unwrap_err().to_string();
            assert_eq!(error, "counts: expected counts of all rows, found too few, or one below 0");
        }
    }
}
