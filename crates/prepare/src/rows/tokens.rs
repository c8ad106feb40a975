//! Rows of token ids that another tool made, with a mask of its own.

use super::Content;
use super::columns::Columns;
use crate::config::Mask;
use crate::value::Value;
use crate::{DataConfig, Error};

/// Masks of 0 and 1; where a row has several, as TRL's have, a token counts if all of them say so.
const MASKS: [&str; 3] = ["loss_mask", "assistant_masks", "completion_mask"];
/// What `labels` has where nothing is learnt.
const NOT_LABELLED: i128 = -100;

const HINT: &str = "the columns are `input_ids` and `labels` (-100, or the id itself), `loss_mask`, \
                    `assistant_masks` or `completion_mask` (0 or 1), all of one length";

pub(super) fn read(columns: &mut Columns, data: &DataConfig) -> Result<Content, Error> {
    let ids = integers(columns, "input_ids")?.unwrap_or_default();
    let mut input_ids = Vec::with_capacity(ids.len());
    for id in &ids {
        let id = i32::try_from(*id).ok().filter(|id| *id >= 0);
        input_ids.push(id.ok_or_else(|| {
            columns.place.error("expected token ids from 0 on in `input_ids`, found others", HINT)
        })?);
    }
    let mut labelled = vec![true; ids.len()];
    let mut is_masked = false;
    for name in MASKS {
        let Some(mask) = column(columns, name, ids.len())? else { continue };
        is_masked = true;
        for (labelled, value) in labelled.iter_mut().zip(mask) {
            if value != 0 && value != 1 {
                let problem = format!("expected 0 and 1 in `{name}`, found {value}");
                return Err(columns.place.error(problem, HINT));
            }
            *labelled &= value == 1;
        }
    }
    if let Some(labels) = column(columns, "labels", ids.len())? {
        is_masked = true;
        for (index, (label, id)) in labels.into_iter().zip(&ids).enumerate() {
            if label != NOT_LABELLED && label != *id {
                let problem = format!("expected -100 or the id {id} in `labels` at {index}, found {label}");
                let hint = "labels stand at the token that they are; some tools shift them by one";
                return Err(columns.place.error(problem, hint));
            }
            labelled[index] &= label != NOT_LABELLED;
        }
    }
    if !is_masked && data.mask != Some(Mask::All) {
        let problem = "expected a mask beside `input_ids`, found none";
        let hint = "add `labels`, or set `mask = \"all\"` to learn every token";
        return Err(columns.place.error(problem, hint));
    }
    refuse_packed(columns, ids.len())?;
    Ok(Content::Tokens { input_ids, labelled })
}

/// Rows with padding, or with several sequences one after the other, are not one sequence.
fn refuse_packed(columns: &mut Columns, tokens: usize) -> Result<(), Error> {
    if column(columns, "attention_mask", tokens)?.is_some_and(|mask| mask.contains(&0)) {
        let problem = "expected a row without padding, found 0 in `attention_mask`";
        return Err(columns.place.error(problem, "write the rows before they are padded"));
    }
    let positions = column(columns, "position_ids", tokens)?;
    let lengths = integers(columns, "seq_lengths")?;
    let restarts = |positions: Vec<i128>| positions.windows(2).any(|pair| pair[1] != pair[0] + 1);
    if positions.is_some_and(restarts) || lengths.is_some_and(|lengths| lengths.len() > 1) {
        let problem = "expected one sequence in a row, found several that were packed";
        return Err(columns.place.error(problem, "write the rows before they are packed"));
    }
    Ok(())
}

/// Whole numbers, one for each token.
fn column(columns: &mut Columns, name: &str, tokens: usize) -> Result<Option<Vec<i128>>, Error> {
    let Some(values) = integers(columns, name)? else { return Ok(None) };
    if values.len() != tokens {
        let problem =
            format!("expected {tokens} values in `{name}`, as in `input_ids`, found {}", values.len());
        return Err(columns.place.error(problem, HINT));
    }
    Ok(Some(values))
}

fn integers(columns: &mut Columns, name: &str) -> Result<Option<Vec<i128>>, Error> {
    let Some(value) = columns.take(name) else { return Ok(None) };
    let Value::List(items) = value else {
        return Err(columns.wrong(name, "a list of whole numbers", &value));
    };
    let integer = |item: &Value| match item {
        Value::Int(value) => Ok(*value),
        Value::Bool(value) => Ok(i128::from(*value)),
        other => Err(columns.wrong(name, "whole numbers", other)),
    };
    items.iter().map(integer).collect::<Result<_, _>>().map(Some)
}
