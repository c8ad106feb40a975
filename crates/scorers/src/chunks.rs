//! A document in chunks of whole sentences, by the rule of each scorer.

use crate::Error;
use crate::sentences::sentences;

/// Words of a chunk of AlignScore's.
const ALIGN_SCORE_WORDS: usize = 350;

/// Chunks of sentences whose sizes sum up to at most `most`, as MiniCheck makes them: line breaks are kept, a sentence that is larger
/// stands alone.
///
/// # Errors
/// Those of `size`.
pub(crate) fn by_size(
    document: &str,
    most: usize,
    mut size: impl FnMut(&str) -> Result<usize, Error>,
) -> Result<Vec<String>, Error> {
    let mut pieces = Vec::new();
    for (line, block) in document.split('\n').enumerate() {
        if line > 0 {
            pieces.push("\n");
        }
        pieces.extend(sentences(block));
    }
    let (mut chunks, mut current, mut sum) = (Vec::new(), Vec::new(), 0);
    for piece in pieces {
        let added = size(piece)?;
        if sum + added > most {
            chunks.push(joined(&current));
            current.clear();
            sum = 0;
        }
        current.push(piece);
        sum += added;
    }
    chunks.push(joined(&current));
    chunks.retain(|chunk| !chunk.is_empty());
    Ok(chunks)
}

fn joined(pieces: &[&str]) -> String {
    pieces.join(" ").replace(" \n ", "\n").trim().to_owned()
}

/// Chunks of like many sentences, of about 350 words, as AlignScore makes them.
pub(crate) fn by_sentences(document: &str) -> Vec<String> {
    let all = sentences(document);
    let parts = document.split_whitespace().count() / ALIGN_SCORE_WORDS + 1;
    all.chunks((all.len() / parts).max(1)).map(|chunk| chunk.join(" ")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Result<usize, Error> {
        Ok(text.split_whitespace().count())
    }

    #[test]
    fn sizes_are_kept_and_lines_too() {
        let chunks =
            |most| by_size("One two. Three four five.\nSix.\n\nSeven eight nine ten.", most, words).unwrap();
        assert_eq!(chunks(100), ["One two. Three four five.\nSix.\n\n Seven eight nine ten."]);
        assert_eq!(chunks(5), ["One two. Three four five.", "Six.\n\n Seven eight nine ten."]);
        assert_eq!(chunks(1), ["One two.", "Three four five.", "Six.", "Seven eight nine ten."]);
        assert!(by_size(" \n ", 3, words).unwrap().is_empty());
    }

    #[test]
    fn sentences_are_shared_out() {
        let sentence = "a b c d e f g h i j k l m n o p q r s tea.";
        let document = [sentence; 40].join(" "); // 800 words: three parts of 13 sentences, and one of the rest
        let chunks: Vec<usize> =
            by_sentences(&document).iter().map(|chunk| chunk.matches('.').count()).collect();
        assert_eq!(chunks, [13, 13, 13, 1]);
        assert_eq!(by_sentences("One. Two."), ["One. Two."]);
    }
}
