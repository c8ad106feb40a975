//! What a pair of document and answer becomes, by the rules of each scorer, and what its probabilities mean.

use serde::Serialize;

use crate::chunks::{by_sentences, by_size};
use crate::network::Probabilities;
use crate::sentences::sentences;
use crate::tokenizer::{AnswerToken, Encoded, TextTokenizer};
use crate::{Error, Kind};

/// What HHEM reads: its authors name no limit, and attention over more would take gigabytes. Nothing is cut off, as the answer stands last.
const HHEM_TOKENS: usize = 1 << 14;
/// MiniCheck's chunks: tokens of a RoBERTa, words of a T5.
const MINI_CHECK_TOKENS: usize = 400;
const MINI_CHECK_WORDS: usize = 500;
/// What stands between document and claim in MiniCheck's texts: the end token of both tokenizers.
pub(crate) const MINI_CHECK_END: &str = "</s>";
/// LettuceDetect's class of tokens that the document does not support.
const UNSUPPORTED: usize = 1;

/// A document, and an answer that may say what is not in it.
#[derive(Debug, Clone, Copy)]
pub struct Pair<'a> {
    /// What the answer is to be supported by.
    pub document: &'a str,
    /// What is scored.
    pub answer: &'a str,
    /// What was asked of the document: for LettuceDetect alone. Without one, the answer is a summary.
    pub question: Option<&'a str>,
}

/// What a scorer says of a pair.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Score {
    /// How well the document supports the answer, from 0 to 1.
    pub consistent: f64,
    /// What is not supported, where the scorer says it.
    pub spans: Vec<Span>,
    /// Chunks that the document was read in.
    pub chunks: usize,
    /// Whether some of a text was cut off because the scorer reads no more.
    pub cut: bool,
}

/// A part of an answer that the document does not support.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Span {
    /// Its first character, counted from the beginning of the answer.
    pub start: usize,
    /// One past its last character.
    pub end: usize,
    /// The greatest probability of its tokens that they are not supported.
    pub confidence: f64,
}

/// A pair that was scored, or why it has no score. What has none is to be counted; it is not faithful.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// It has a score.
    Scored(Score),
    /// The answer is empty.
    Empty,
    /// The answer, or a sentence of it, is longer than the scorer reads.
    TooLong,
}

/// How sentences of an answer become one score.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Over {
    Least,
    Mean,
}

/// Texts of a pair: those of one sentence after the other, of each all chunks.
pub(crate) struct Plan {
    pub(crate) texts: Vec<Encoded>,
    pub(crate) chunks: usize,
}

/// A pair on its way.
pub(crate) enum Planned {
    Texts(Plan),
    Empty,
    TooLong,
}

/// What a rule needs to know of the scorer.
pub(crate) struct Rule<'a> {
    pub(crate) kind: Kind,
    pub(crate) tokenizer: &'a TextTokenizer,
    /// Tokens of a text.
    pub(crate) limit: usize,
    /// Whether MiniCheck is the one of T5.
    pub(crate) is_t5: bool,
    /// The class that is supported.
    pub(crate) supported: usize,
}

impl Rule<'_> {
    /// # Errors
    /// The tokenizer refuses a text.
    pub(crate) fn plan(&self, pair: &Pair<'_>) -> Result<Planned, Error> {
        if pair.answer.trim().is_empty() {
            return Ok(Planned::Empty);
        }
        let whole = |text: Option<Encoded>| Ok(planned(text.map(|text| vec![text]), 1));
        match self.kind {
            Kind::LettuceDetect => self.lettuce_detect(pair),
            Kind::Hhem => {
                let text = self.tokenizer.one(&hhem_text(pair))?;
                whole((text.ids.len() <= HHEM_TOKENS).then_some(text))
            }
            Kind::FactKb => whole(self.tokenizer.two(pair.answer, pair.document)?),
            Kind::MiniCheck => self.mini_check(pair),
            Kind::AlignScore | Kind::Nli => {
                let chunks = by_sentences(pair.document);
                let texts =
                    each(pair.answer, &chunks, |chunk, sentence| self.tokenizer.two(chunk, sentence))?;
                Ok(planned(texts, chunks.len()))
            }
            Kind::Judge => unreachable!("a judge has no encoder"),
        }
    }

    /// Chunks of whole sentences only where the document is too long: by `max_size` tokens of sentences that are counted alone.
    fn lettuce_detect(&self, pair: &Pair<'_>) -> Result<Planned, Error> {
        let text =
            |passage: &str| self.tokenizer.two(&lettuce_detect_text(passage, pair.question), pair.answer);
        let Some(whole) = text(pair.document)? else { return Ok(Planned::TooLong) };
        if whole.cut == 0 {
            return Ok(planned(Some(vec![whole]), 1));
        }
        let Some(empty) = text("")? else { return Ok(Planned::TooLong) };
        let room = self.limit.saturating_sub(empty.ids.len());
        if empty.cut > 0 || room == 0 {
            return Ok(Planned::TooLong);
        }
        // A space before a sentence may be a token of its own.
        let chunks = by_size(pair.document, room, |sentence| Ok(self.tokenizer.count(sentence)? + 1))?;
        let texts: Result<Option<Vec<_>>, _> = chunks.iter().map(|chunk| text(chunk)).collect();
        Ok(planned(texts?, chunks.len()))
    }

    fn mini_check(&self, pair: &Pair<'_>) -> Result<Planned, Error> {
        let chunks = if self.is_t5 {
            by_size(pair.document, MINI_CHECK_WORDS, |sentence| Ok(sentence.split_whitespace().count()))
        } else {
            by_size(pair.document, MINI_CHECK_TOKENS, |sentence| self.tokenizer.count(sentence))
        }?;
        let texts = each(pair.answer, &chunks, |chunk, sentence| self.mini_check_text(chunk, sentence))?;
        Ok(planned(texts, chunks.len()))
    }

    /// One text, of whose document the end is cut off where it is too long: its claim stands behind it, and must be read.
    fn mini_check_text(&self, mut chunk: &str, claim: &str) -> Result<Option<Encoded>, Error> {
        let prefix = if self.is_t5 { "predict: " } else { "" };
        let mut cut = 0;
        loop {
            let mut text = self.tokenizer.one(&format!("{prefix}{chunk}{MINI_CHECK_END}{claim}"))?;
            if text.cut == 0 {
                text.cut = cut;
                return Ok(Some(text));
            }
            if chunk.is_empty() {
                return Ok(None);
            }
            cut += text.cut;
            // A token has a byte at least, so no more than needed is cut off, in some steps.
            let end = chunk.floor_char_boundary(chunk.len().saturating_sub(text.cut));
            chunk = &chunk[..end];
        }
    }

    /// What the probabilities of a pair's texts say.
    pub(crate) fn score(&self, plan: &Plan, found: &[Probabilities]) -> Score {
        let cut = plan.texts.iter().any(|text| text.cut > 0);
        let chunks = plan.chunks;
        if self.kind == Kind::LettuceDetect {
            let (consistent, spans) = spans(&plan.texts, found);
            return Score { consistent, spans, chunks, cut };
        }
        let values: Vec<f64> = found.iter().map(|text| text.of(0, self.supported)).collect();
        let over = if self.kind == Kind::MiniCheck { Over::Least } else { Over::Mean };
        Score { consistent: combined(&values, chunks, over), spans: Vec::new(), chunks, cut }
    }
}

fn planned(texts: Option<Vec<Encoded>>, chunks: usize) -> Planned {
    texts.map_or(Planned::TooLong, |texts| Planned::Texts(Plan { texts, chunks }))
}

/// Each sentence of the answer with each chunk; none where a sentence is too long.
pub(crate) fn each<T>(
    answer: &str,
    chunks: &[String],
    mut text: impl FnMut(&str, &str) -> Result<Option<T>, Error>,
) -> Result<Option<Vec<T>>, Error> {
    let mut texts = Vec::new();
    for sentence in sentences(answer) {
        for chunk in chunks {
            match text(chunk, sentence)? {
                Some(text) => texts.push(text),
                None => return Ok(None),
            }
        }
    }
    Ok(Some(texts))
}

/// The best chunk of each sentence; over the sentences the least or the mean.
pub(crate) fn combined(values: &[f64], chunks: usize, over: Over) -> f64 {
    let best: Vec<f64> =
        values.chunks(chunks.max(1)).map(|of_one| of_one.iter().copied().fold(0.0, f64::max)).collect();
    match over {
        Over::Least => best.iter().copied().fold(1.0, f64::min),
        Over::Mean => best.iter().sum::<f64>() / best.len().max(1) as f64,
    }
}

fn hhem_text(Pair { document, answer, .. }: &Pair<'_>) -> String {
    format!(
        "<pad> Determine if the hypothesis is true given the premise?\n\nPremise: {document}\n\nHypothesis: {answer}"
    )
}

fn lettuce_detect_text(passage: &str, question: Option<&str>) -> String {
    match question {
        None => format!("Summarize the following text:\npassage 1: {passage}\noutput:"),
        Some(question) => format!(
            "Briefly answer the following question:\n{question}\nBear in mind that your response should be strictly based on the \
             following 1 passages:\npassage 1: {passage}\nIn case the passages do not contain the necessary information to answer the \
             question, please reply with: \"Unable to answer based on given passages.\"\noutput:"
        ),
    }
}

/// Spans of tokens that no chunk supports, and 1 minus the greatest probability that a token is not supported.
fn spans(texts: &[Encoded], found: &[Probabilities]) -> (f64, Vec<Span>) {
    let mut spans: Vec<Span> = Vec::new();
    let (mut most, mut goes_on) = (0.0f64, false);
    for (number, AnswerToken { start, end, .. }) in texts[0].answer.iter().enumerate() {
        // The answer's tokens are the same beside each chunk.
        let of_chunk =
            |(text, found): (&Encoded, &Probabilities)| found.of(text.answer[number].place, UNSUPPORTED);
        let confidence = texts.iter().zip(found).map(of_chunk).fold(1.0, f64::min);
        most = most.max(confidence);
        if confidence <= 0.5 {
            goes_on = false;
            continue;
        }
        match spans.last_mut().filter(|_| goes_on) {
            Some(span) => {
                span.end = *end;
                span.confidence = span.confidence.max(confidence);
            }
            None => spans.push(Span { start: *start, end: *end, confidence }),
        }
        goes_on = true;
    }
    (1.0 - most, spans)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_chunk_of_each_sentence_counts() {
        let values = [0.2, 0.9, 0.4, 0.6, 0.5, 0.1];
        assert_eq!(combined(&values, 2, Over::Least), 0.5);
        assert!((combined(&values, 2, Over::Mean) - 2.0 / 3.0).abs() < 1e-12);
        assert_eq!(combined(&[0.3], 1, Over::Mean), 0.3);
    }

    #[test]
    fn a_span_is_what_no_chunk_supports() {
        let text = |places: [usize; 4]| Encoded {
            ids: vec![0; 12],
            answer: places
                .into_iter()
                .enumerate()
                .map(|(number, place)| AnswerToken { place, start: 3 * number, end: 3 * number + 2 })
                .collect(),
            cut: 0,
        };
        let found = |places: [usize; 4], unsupported: [f64; 4]| {
            let mut values = vec![0.5; 24];
            for (place, unsupported) in places.into_iter().zip(unsupported) {
                (values[2 * place], values[2 * place + 1]) = (1.0 - unsupported, unsupported);
            }
            Probabilities { values, classes: 2 }
        };
        let (one, other) = ([4, 5, 6, 7], [8, 9, 10, 11]);
        let texts = [text(one), text(other)];
        let values = [found(one, [0.9, 0.6, 0.9, 0.7]), found(other, [0.8, 0.7, 0.1, 0.9])];
        let (consistent, found) = spans(&texts, &values);
        assert_eq!(
            found,
            [Span { start: 0, end: 5, confidence: 0.8 }, Span { start: 9, end: 11, confidence: 0.7 }]
        );
        assert!((consistent - 0.2).abs() < 1e-12);
    }
}
