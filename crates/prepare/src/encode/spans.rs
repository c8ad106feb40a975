//! From parts of a text to the tokens that hold them.

use std::ops::Range;

use super::turns::{End, Turn};
use crate::Tokenizer;
use crate::offsets::Tokens;

/// Tokens that hold something of a part of the text.
pub(crate) struct Held {
    pub(crate) mask: Vec<bool>,
    /// Those that hold something beside it, too.
    pub(crate) straddling: u64,
}

/// An answer in the text, with the token that ends it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Answer {
    pub(crate) text: Range<usize>,
    /// Whether a token ends it.
    pub(crate) is_ended: bool,
}

/// The rule: a token that holds any character of the parts is theirs, also where it holds others.
pub(crate) fn held(tokens: &Tokens, parts: &[Range<usize>]) -> Held {
    let mut straddling = 0;
    let part_of = |token: &Range<usize>| {
        parts.iter().find(|part| {
            if token.is_empty() {
                part.contains(&token.start)
            } else {
                token.start < part.end && token.end > part.start
            }
        })
    };
    let mask = tokens.ranges.iter().map(|token| {
        let part = part_of(token);
        straddling += u64::from(part.is_some_and(|part| token.start < part.start || token.end > part.end));
        part.is_some()
    });
    let mask = mask.collect();
    Held { mask, straddling }
}

/// A turn of the rendered `text` up to the token that ends it; `None` where no token does, though one is due.
pub(crate) fn ended(tokenizer: &Tokenizer, tokens: &Tokens, text: &str, turn: &Turn) -> Option<Answer> {
    let special = |within: Range<usize>| {
        let all = tokens.ids.iter().zip(&tokens.ranges);
        let inside = all.filter(move |(_, range)| range.start >= within.start && range.end <= within.end);
        inside.filter(|(id, _)| tokenizer.ends_turns(**id)).map(|(_, range)| range.end)
    };
    let answer = |end: usize, is_ended: bool| Some(Answer { text: turn.start..end, is_ended });
    match &turn.end {
        End::Said(end) => answer(*end, true),
        End::Special(within) => special(within.clone()).next().and_then(|end| answer(end, true)),
        End::Rendering(end) => {
            let last = special(turn.start..*end).last().filter(|last| text[*last..*end].trim().is_empty());
            if let Some(last) = last {
                return answer(last, true);
            }
            // Some templates write the token that ends a turn only where another turn follows.
            let next = tokens.ranges.iter().position(|range| range.start == *end && !range.is_empty());
            let stop = next.filter(|next| tokenizer.stop_ids().contains(&tokens.ids[*next]));
            stop.map_or_else(|| answer(*end, false), |next| answer(tokens.ranges[next].end, true))
        }
    }
}
