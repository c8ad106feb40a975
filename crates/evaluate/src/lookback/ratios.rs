//! How much a model looks at the document while it writes an answer.
//!
//! Legend: L layers, H heads, R tokens of the answer, T tokens of the whole text.

use std::ops::Range;

use anyhow::Result;
use burn::tensor::{Tensor, TensorData};
use softshard_labels::Error;
use softshard_model::Decoder;
use softshard_prepare::Tokenizer;

use crate::{Judged, statistics::number};

/// Where the document stands in a template.
const DOCUMENT: &str = "{document}";
/// Where the answer stands: at the end.
const ANSWER: &str = "{answer}";

/// A prompt: all up to the end of the document is the context, the rest up to the answer asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptTemplate {
    before: String,
    between: String,
}

impl PromptTemplate {
    /// Lookback Lens's.
    pub const DEFAULT: &'static str = "#Document#: {document}\n#Summary#: {answer}";

    /// A text with `{document}` once, and `{answer}` at its end.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let parts = text.split_once(DOCUMENT).and_then(|(before, rest)| {
            let between = rest.strip_suffix(ANSWER)?;
            let once = !between.contains(DOCUMENT) && !between.contains(ANSWER) && !before.contains(ANSWER);
            (once && !between.is_empty()).then(|| (before.to_owned(), between.to_owned()))
        });
        let Some((before, between)) = parts else {
            let expected = "`{document}` once, a text that asks for the answer, and `{answer}` at the end";
            return Err(Error::bad("the template", expected, format_args!("{text:?}")));
        };
        Ok(Self { before, between })
    }
}

/// The ids of a text and where its parts are.
#[derive(Debug, PartialEq)]
pub(super) struct Laid {
    pub(super) ids: Vec<i32>,
    /// Tokens of the context: the first ones.
    context: usize,
    /// Tokens before the answer.
    prompt: usize,
    /// The characters of the answer that each of its tokens holds.
    pub(super) characters: Vec<Range<usize>>,
    /// Tokens of the document that were left out at its end.
    pub(super) cut: usize,
}

impl Laid {
    /// The ids of a prompt with its answer, as one text: at most `limit`, for which the end of the document is left out.
    ///
    /// # Errors
    /// The tokenizer cannot encode it; no token is the answer's alone; what is not the document is longer than the limit.
    pub(super) fn new(
        judged: &Judged,
        template: &PromptTemplate,
        tokenizer: &Tokenizer,
        limit: usize,
    ) -> Result<Self> {
        let Judged { id, document, answer, .. } = judged;
        let PromptTemplate { before, between } = template;
        let text = format!("{before}{document}{between}{answer}");
        let tokens = tokenizer.encode_with_ranges(&text)?;
        let end_of_document = before.len() + document.len();
        let start_of_answer = end_of_document + between.len();
        let [begin, mut context, mut prompt] =
            [before.len(), end_of_document, start_of_answer].map(|byte| tokens.first_behind(byte));
        let place = format!("answer to document `{id}`");
        let (mut ids, ranges) = (tokens.ids, &tokens.ranges[prompt..]);
        if ranges.is_empty() {
            return Err(Error::bad(place, "a text", format_args!("{answer:?}")).into());
        }
        let character = |byte: usize| answer[..byte.saturating_sub(start_of_answer)].chars().count();
        let characters = ranges.iter().map(|range| character(range.start)..character(range.end)).collect();
        let bos = if tokenizer.adds_bos() { tokenizer.bos() } else { None };
        let cut = (ids.len() + usize::from(bos.is_some())).saturating_sub(limit);
        if cut > context.saturating_sub(begin) {
            let expected = format_args!("at most {limit} tokens without the document");
            return Err(Error::bad(place, expected, ids.len() - (context - begin)).into());
        }
        ids.drain(context - cut..context);
        (context, prompt) = (context - cut, prompt - cut);
        if let Some(bos) = bos {
            ids.insert(0, bos);
            (context, prompt) = (context + 1, prompt + 1);
        }
        if context == 0 || prompt == context {
            let expected = "tokens of a context and of what asks for the answer";
            return Err(Error::bad(place, expected, "none").into());
        }
        Ok(Self { ids, context, prompt, characters, cut })
    }

    /// What is read before the row that writes the first token of the answer: answers to one document share it.
    pub(super) fn before(&self) -> &[i32] {
        &self.ids[..self.prompt - 1]
    }

    /// The rows that write the answer: its tokens but the last, behind the last of the prompt.
    fn rows(&self) -> &[i32] {
        &self.ids[self.prompt - 1..self.ids.len() - 1]
    }
}

/// For each token of each answer the share of attention that goes to the context while it is written: with A the mean
/// attention to a token of the context and B that to a later one, A / (A + B), of the token before it. Layer by layer, head by
/// head (Lookback Lens, arXiv 2407.07071). The answers are to one document, which is read once.
///
/// # Shapes
/// `[answers][R][L·H]`.
///
/// # Errors
/// Streamed weights cannot be read.
pub(super) fn ratios(group: &[Laid], decoder: &Decoder) -> Result<Vec<Vec<Vec<f32>>>> {
    let mut found: Vec<Vec<Vec<f32>>> =
        group.iter().map(|laid| vec![Vec::new(); laid.rows().len()]).collect();
    let rows: Vec<&[i32]> = group.iter().map(Laid::rows).collect();
    decoder.attention_of_continuations(group[0].before(), &rows, |answer, probabilities| {
        let laid = &group[answer];
        let [heads, count, tokens] = probabilities.dims();
        let sum = |part: Range<usize>| {
            let part = probabilities.clone().slice([0..heads, 0..count, part]);
            part.sum_dim(2).reshape([heads, count])
        };
        // A row sees itself and what is before it, so the mean over the rest is over fewer of them.
        let first = laid.prompt - laid.context;
        let counts: Vec<f32> = (first..first + count).map(|rest| 1.0 / number(rest) as f32).collect();
        let context = sum(0..laid.context) / number(laid.context);
        let counts = Tensor::<2>::from_data(TensorData::new(counts, [1, count]), &context.device());
        let rest = sum(laid.context..tokens) * counts;
        let ratios = (context.clone() / (context + rest)).swap_dims(0, 1);
        let values = ratios.try_into_vec_as::<f32>().expect("ratios are 32-bit numbers");
        for (token, values) in found[answer].iter_mut().zip(values.chunks(heads)) {
            token.extend_from_slice(values);
        }
    })?;
    Ok(found)
}

/// The mean of the ratios of some tokens: the features of a span.
pub(super) fn mean(ratios: &[Vec<f32>]) -> Vec<f64> {
    let mut sums = vec![0.0; ratios.first().map_or(0, Vec::len)];
    for token in ratios {
        sums.iter_mut().zip(token).for_each(|(sum, ratio)| *sum += f64::from(*ratio));
    }
    sums.iter_mut().for_each(|sum| *sum /= number(ratios.len()));
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_has_its_two_places() {
        let found = PromptTemplate::parse(PromptTemplate::DEFAULT).unwrap();
        assert_eq!((&*found.before, &*found.between), ("#Document#: ", "\n#Summary#: "));
        for text in ["", "{document}", "{document}{answer}", "{answer} {document}", "{document} a {answer} b"]
        {
            let message = PromptTemplate::parse(text).unwrap_err().to_string();
            assert!(message.contains("`{document}` once"), "{message}");
        }
    }

    #[test]
    fn features_of_a_span_are_means() {
        assert_eq!(mean(&[vec![0.5, 0.25], vec![1.0, 0.75]]), [0.75, 0.5]);
    }
}
