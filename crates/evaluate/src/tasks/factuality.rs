//! Faithfulness and factuality by likelihood: summaries of a document (FIB), completions of a text (FACTOR).

use softshard_prepare::{Error, FileRow, Value};

use super::{
    columns::{has, other, text, value},
    harness::document,
    question::Question,
};

/// The paper's prompt for XSUM (arXiv 2502.11306).
pub(crate) const FIB_PROMPT: &str = "Article: {document}\nSummarize the article in one sentence. Summary:";

/// Summaries of a document, those first that are faithful to it. Each is asked behind the prompt with the document, and then each
/// behind nothing: `contexts` and `continuations` are twice as many as `choices`. None where one of the sides is empty.
///
/// Rows have `faithful` and `unfaithful`, or `reference_corrected` and `summaries`, each with `consistent`.
///
/// # Errors
/// A column is missing or holds something else.
pub(crate) fn fib(row: &FileRow, prompt: &str) -> Result<Option<Question>, Error> {
    let (faithful, unfaithful) = if has(row, "faithful") {
        (summaries(row, "faithful", None)?, summaries(row, "unfaithful", None)?)
    } else {
        (summaries(row, "reference_corrected", None)?, summaries(row, "summaries", Some(0))?)
    };
    if faithful.is_empty() || unfaithful.is_empty() {
        return Ok(None);
    }
    let gold = (0..faithful.len()).collect();
    let choices = [faithful, unfaithful].concat();
    let asked = prompt.replace("{document}", text(row, "document")?);
    let contexts = std::iter::repeat_n(asked, choices.len());
    let contexts = contexts.chain(std::iter::repeat_n(String::new(), choices.len())).collect();
    let question = Question::of(String::new(), choices, 0, " ");
    let continuations = [question.continuations.clone(), question.continuations].concat();
    let document = Some(document(row, "document")?);
    Ok(Some(Question { contexts, continuations, gold, document, ..question }))
}

/// A text, a list of texts, or a list of objects with `text` or `summary`; where a judgement is asked for, those whose `consistent`
/// it is.
fn summaries(row: &FileRow, column: &str, judged: Option<i128>) -> Result<Vec<String>, Error> {
    let found = value(row, column)?;
    let items = match found {
        Value::Text(text) => return Ok(vec![text.clone()]),
        Value::List(items) => items,
        found => return Err(other(row, column, "a text or a list", found)),
    };
    let mut texts = Vec::new();
    for item in items {
        if let Some(judged) = judged {
            match item.get("consistent") {
                Some(Value::Int(found @ (0 | 1))) if *found != judged => continue,
                Some(Value::Int(0 | 1)) => {}
                _ => return Err(other(row, column, "summaries with `consistent` of 0 or 1", item)),
            }
        }
        let text = item.as_text().or_else(|| item.get("text").or_else(|| item.get("summary"))?.as_text());
        let expected = "texts, or objects with a `text` or a `summary`";
        texts.push(text.ok_or_else(|| other(row, column, expected, item))?.to_owned());
    }
    Ok(texts)
}

/// A completion and three that contradict the text, in FACTOR's columns (`turncated_prefixes` is spelled so there); the spaces
/// between are FACTOR's. Rows with the same `doc_id` are of one document.
///
/// # Errors
/// A column is missing or holds something else.
pub(crate) fn factor(row: &FileRow) -> Result<Question, Error> {
    let prefix = text(row, "turncated_prefixes")?;
    let mut choices = vec![text(row, "completion")?];
    for number in 0..3 {
        choices.push(text(row, &format!("contradiction_{number}"))?);
    }
    let choices: Vec<String> =
        choices.iter().map(|choice| choice.trim_start_matches(' ').to_owned()).collect();
    let (context, delimiter) = match prefix.strip_suffix(' ') {
        Some(context) => (context, " "),
        None => (prefix, ""),
    };
    let question = Question::of(context.to_owned(), choices, 0, delimiter);
    let document = if has(row, "doc_id") { Some(document(row, "doc_id")?) } else { None };
    Ok(Question { document, ..question })
}

/// Refuses a prompt without the document.
///
/// # Errors
/// It has no `{document}`.
pub(crate) fn check_prompt(prompt: &str) -> Result<(), String> {
    if prompt.contains("{document}") {
        return Ok(());
    }
    Err(format!("expected `{{document}}` in it, found {prompt:?}"))
}
