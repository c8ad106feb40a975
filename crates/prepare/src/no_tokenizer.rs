//! Places that hold a tokenizer without a `tokenizer.json`: what they are, and how to make the file.

use std::io::Read;
use std::path::Path;

use crate::Error;

/// Files of tokenizers that this crate does not read, and what they are.
const OTHERS: [(&str, &str); 8] = [
    ("tekken.json", "`tekken.json` of Mistral"),
    ("tokenizer.model", "`tokenizer.model` of SentencePiece or tiktoken"),
    ("spiece.model", "`spiece.model` of SentencePiece"),
    ("sentencepiece.bpe.model", "`sentencepiece.bpe.model` of SentencePiece"),
    ("vocab.json", "`vocab.json`"),
    ("merges.txt", "`merges.txt`"),
    ("vocab.txt", "`vocab.txt`"),
    ("tiktoken.model", "`tiktoken.model`"),
];

/// Whether a model folder has a tokenizer of its own.
///
/// # Errors
/// It has one, but no `tokenizer.json`: nothing can be compared with it.
pub(crate) fn has_tokenizer(folder: &Path) -> Result<bool, Error> {
    if folder.join("tokenizer.json").exists() {
        return Ok(true);
    }
    match OTHERS.iter().any(|(name, _)| folder.join(name).exists()) {
        true => Err(refusal(folder, &found(folder))),
        false => Ok(false),
    }
}

/// Refuses a place that is there and holds no `tokenizer.json`; one that is not there is for whoever reads it.
pub(crate) fn check_kind(path: &Path) -> Result<(), Error> {
    if path.is_dir() {
        return if path.join("tokenizer.json").exists() { Ok(()) } else { Err(refusal(path, &found(path))) };
    }
    let mut head = Vec::new();
    if path.is_file() {
        fs_err::File::open(path)?.take(4).read_to_end(&mut head)?;
    }
    if head == b"GGUF" {
        return Err(refusal(path, "a GGUF file"));
    }
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    match OTHERS.iter().find(|(other, _)| *other == name) {
        Some((_, what)) if path.is_file() => Err(refusal(path, what)),
        _ => Ok(()),
    }
}

fn found(folder: &Path) -> String {
    let found: Vec<&str> =
        OTHERS.iter().filter(|(name, _)| folder.join(name).exists()).map(|(_, what)| *what).collect();
    if !found.is_empty() {
        return found.join(" and ");
    }
    let mut names = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let is_gguf = names.any(|entry| entry.path().extension().is_some_and(|extension| extension == "gguf"));
    if is_gguf { "a GGUF file".to_owned() } else { "no file of a tokenizer".to_owned() }
}

fn refusal(path: &Path, found: &str) -> Error {
    let folder = if path.is_dir() { path } else { path.parent().unwrap_or(path) }.display();
    let hint = if found.contains("GGUF") {
        "name the Hugging Face folder that the GGUF file was made from".to_owned()
    } else if found.contains("tekken") {
        format!(
            "make it with transformers: python -c \"from transformers.integrations.mistral import convert_tekken_tokenizer as \
             convert; convert('{folder}/tekken.json').save_pretrained('{folder}')\""
        )
    } else if found.starts_with("no file") {
        "a tokenizer is a Hugging Face model folder, or a tokenizer.json".to_owned()
    } else {
        format!(
            "make it with transformers (for a `.model` also `pip install sentencepiece tiktoken`): python -c \"from transformers \
             import AutoTokenizer; AutoTokenizer.from_pretrained('{folder}').save_pretrained('{folder}')\""
        )
    };
    Error::tokenizer(path, format!("expected `tokenizer.json`, found {found}\nhint: {hint}"))
}
