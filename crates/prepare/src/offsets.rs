//! Which part of a text each token holds.

use std::ops::Range;

use tokenizers::{Encoding, PostProcessor};

use crate::{Error, Tokenizer};

/// Token ids of a text, and the bytes of the text that each of them holds.
#[derive(Debug, PartialEq)]
pub struct Tokens {
    /// Ids.
    pub ids: Vec<i32>,
    /// The bytes of each.
    pub ranges: Vec<Range<usize>>,
}

/// Token ids of a text, and transformers' mask over them.
pub(crate) struct MarkedTokens {
    pub(crate) ids: Vec<i32>,
    pub(crate) mask: Vec<bool>,
    /// Tokens under the mask that hold text beside a mark, too.
    pub(crate) straddling: u64,
    /// The first token of the last mark.
    pub(crate) last_mark: Option<usize>,
    /// Marks whose first or last character no token holds, with all that are left out for it.
    pub(crate) unmatched: u64,
}

impl Tokens {
    /// The first token that holds something behind `byte`, or their number.
    pub fn first_behind(&self, byte: usize) -> usize {
        self.ranges.iter().position(|range| range.end > byte).unwrap_or(self.ids.len())
    }
}

impl Tokenizer {
    /// Ids of `text`, as [`Tokenizer::encode`] gives them, with their places.
    ///
    /// A character that is cut over several tokens is held by each of them. An added token holds what it spells, not the white space
    /// that it takes along (`lstrip`, `rstrip`): nothing of that is in its id.
    ///
    /// # Errors
    /// The tokenizer cannot encode it.
    pub fn encode_with_ranges(&self, text: &str) -> Result<Tokens, Error> {
        let encoding = self.inner.encode(text, false).map_err(|error| Error::tokenizer(&self.path, error))?;
        let ids = self.ids(&encoding)?;
        let ranges = encoding.get_offsets().iter().zip(encoding.get_ids()).map(|(&(start, end), id)| {
            let spelt = self.stripping.get(id);
            let within = spelt.and_then(|spelt| text.get(start..end)?.find(spelt.as_str()));
            match (within, spelt) {
                (Some(before), Some(spelt)) => start + before..start + before + spelt.len(),
                _ => start..end,
            }
        });
        let ranges = ranges.collect();
        Ok(Tokens { ids, ranges })
    }

    /// What transformers' `apply_chat_template(…, return_assistant_tokens_mask=True)` makes of a text and the parts of it that
    /// the template marks: the same ids and the same mask.
    ///
    /// The mask reaches from the token that holds the first character of a mark to the one that holds the last, by the
    /// offsets after post-processing. Where no token holds the first, transformers leaves this mark and all after it
    /// out; where none holds the last, or it is token 0, the mask reaches to the end of the text.
    pub(crate) fn encode_marked(&self, text: &str, marks: &[Range<usize>]) -> Result<MarkedTokens, Error> {
        let refuse = |error: tokenizers::Error| Error::tokenizer(&self.path, error);
        let mut encoding = self.inner.encode_char_offsets(text, false).map_err(refuse)?;
        if let Some(processor) = &self.post_processor {
            encoding = processor.process(encoding, None, false).map_err(refuse)?;
        }
        let ids = self.ids(&encoding)?;
        let mut mask = vec![false; ids.len()];
        let (mut straddling, mut last_mark, mut unmatched) = (0, None, 0);
        // A mark of nothing at the beginning is an error there.
        for (index, mark) in marks.iter().enumerate().filter(|(_, mark)| mark.end > 0) {
            let [start, end] = [mark.start, mark.end].map(|byte| text[..byte].chars().count());
            let Some(first) = encoding.char_to_token(start, 0) else {
                unmatched += u64::try_from(marks.len() - index).expect("a length fits 64 bits");
                break;
            };
            let last = encoding.char_to_token(end - 1, 0).filter(|last| *last > 0);
            unmatched += u64::from(last.is_none());
            let behind = last.map_or(ids.len(), |last| last + 1);
            let offsets = encoding.get_offsets();
            for token in first..behind {
                let (from, to) = offsets[token];
                straddling += u64::from(!mask[token] && (from < start || to > end));
                mask[token] = true;
            }
            last_mark = Some(first);
        }
        Ok(MarkedTokens { ids, mask, straddling, last_mark, unmatched })
    }

    fn ids(&self, encoding: &Encoding) -> Result<Vec<i32>, Error> {
        encoding.get_ids().iter().map(|id| self.id(*id)).collect()
    }
}
