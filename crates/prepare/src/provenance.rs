//! What sequences are made from, as it stands in their manifest and as the recipe says it now.

use std::path::PathBuf;

use serde_json::{Value, json};
use softshard_labels::{Artefact, Provenance, file_blake3, short};

use crate::config::{DataConfig, TokenizerConfig};
use crate::{Error, Tokenizer};

/// Keys of `[data]` that decide how sequences lie, and no sequence.
const LAYOUT: [&str; 1] = ["sequences_per_shard"];
/// Keys of `[data]` that are paths: their files count by what is in them, and the recipe by how many there are.
const PATHS: [&str; 2] = ["instructions", "text"];

/// Stands for the hash of what was no file.
const PIPE: &str = "a pipe";

/// What the sequences of a recipe are made from.
///
/// # Errors
/// A data file that is not there, or cannot be read.
pub(crate) fn of_recipe(
    data: &DataConfig,
    config: &TokenizerConfig,
    tokenizer: &Tokenizer,
) -> Result<Provenance, Error> {
    let mut this = sections(data, config);
    for (name, path) in files(data) {
        // What a pipe gave is gone when it was read: all that can be said is that it was one.
        let blake3 = if fs_err::metadata(path)?.is_file() { file_blake3(path)? } else { PIPE.to_owned() };
        this.input(name, blake3);
    }
    this.tokenizer(tokenizer.fingerprint());
    Ok(this)
}

/// What a recipe says now of the sequences that it would make, to be compared with those that are there. Data files that are gone say
/// nothing; a tokenizer is compared by itself, as ids of another one mean something else.
///
/// # Errors
/// A data file that cannot be read.
pub fn expected(data: &DataConfig, config: &TokenizerConfig) -> Result<Provenance, Error> {
    let mut this = sections(data, config);
    for (name, path) in files(data) {
        if path.is_file() {
            this.input(name, file_blake3(path)?);
        }
    }
    Ok(this)
}

fn sections(data: &DataConfig, config: &TokenizerConfig) -> Provenance {
    let mut this = Provenance::new(Artefact::Sequences);
    let of_tokenizer = json!({ "add_bos": config.add_bos, "add_eos": config.add_eos });
    this.recipe.insert("data".to_owned(), of_data(data));
    this.recipe.insert("tokenizer".to_owned(), of_tokenizer);
    this
}

/// Refuses data that was written while it was read: it would not be what the sequences say they are made from.
///
/// # Errors
/// Names the first file that changed, or is gone.
pub(crate) fn check_unchanged(
    before: &Provenance,
    data: &DataConfig,
    config: &TokenizerConfig,
) -> Result<(), Error> {
    let after = expected(data, config)?;
    let is_file = |(name, blake3): &(&String, &String)| name.starts_with("data.") && *blake3 != PIPE;
    let mut inputs = before.inputs.iter().filter(is_file);
    let changed = inputs.find(|(name, blake3)| after.inputs.get(*name) != Some(*blake3));
    let Some((name, blake3)) = changed else { return Ok(()) };
    let found = after.inputs.get(name).map_or("none", |found| short(found));
    let expected = format!("the file that was there when `prepare` began, BLAKE3 {}", short(blake3));
    let hint = "it changed while it was read: run `softshard prepare` again";
    Err(softshard_labels::Error::bad(name, expected, found).hint(hint).into())
}

/// A stored provenance with the keys that its recipe had not yet: what was not said is as it was before there were such keys.
pub fn completed(mut stored: Provenance) -> Provenance {
    let Some(Value::Object(data)) = stored.recipe.get_mut("data") else { return stored };
    let mut whole = data.clone();
    for key in PATHS {
        let count = whole.get(key).and_then(Value::as_u64).and_then(|count| usize::try_from(count).ok());
        whole.insert(key.to_owned(), json!(vec![""; count.unwrap_or(0).min(MOST_FILES)]));
    }
    if let Ok(whole) = serde_json::from_value::<DataConfig>(Value::Object(whole)) {
        stored.recipe.insert("data".to_owned(), of_data(&whole));
    }
    stored
}

/// A manifest from a stranger may say any number.
const MOST_FILES: usize = 1 << 16;

/// All data files with their names.
fn files(data: &DataConfig) -> impl Iterator<Item = (String, &PathBuf)> {
    let lists = PATHS.into_iter().zip([&data.instructions, &data.text]);
    lists.flat_map(|(key, paths)| {
        paths.iter().enumerate().map(move |(index, path)| (format!("data.{key}.{index}"), path))
    })
}

fn of_data(data: &DataConfig) -> Value {
    let mut recipe = serde_json::to_value(data).expect("a recipe's section has text keys and finite floats");
    let keys = recipe.as_object_mut().expect("a section is a table");
    LAYOUT.iter().for_each(|&key| drop(keys.remove(key)));
    for (key, paths) in PATHS.into_iter().zip([&data.instructions, &data.text]) {
        keys.insert(key.to_owned(), json!(paths.len()));
    }
    // What is not said is what is in force. A corpus of text has no template.
    if !data.is_text() {
        keys.insert("template".to_owned(), json!(data.template_name()));
    }
    keys.insert("mask".to_owned(), json!(data.mask()));
    recipe
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(value: Value) -> DataConfig {
        serde_json::from_value(value).unwrap()
    }

    fn tokenizer() -> TokenizerConfig {
        serde_json::from_value(json!({ "path": "t" })).unwrap()
    }

    #[test]
    fn neither_paths_nor_layout_are_part_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let [one, other] = ["one.jsonl", "other.jsonl"].map(|name| folder.path().join(name));
        [&one, &other].iter().for_each(|path| fs_err::write(path, "{}").unwrap());
        let of = |path: &PathBuf, shard: usize| {
            let data =
                data(json!({ "instructions": path, "sequences_per_shard": shard, "template": "minillm" }));
            expected(&data, &tokenizer()).unwrap()
        };
        assert_eq!(of(&one, 10), of(&other, 20));
        let text = String::from_utf8(of(&one, 10).to_json()).unwrap();
        assert!(!text.contains("jsonl") && text.contains("data.instructions.0"), "{text}");
        // Said or not, it is the same template.
        let unsaid = data(json!({ "instructions": one }));
        assert_eq!(expected(&unsaid, &tokenizer()).unwrap(), of(&one, 10));
        fs_err::write(&one, "{} ").unwrap();
        let differences = of(&one, 10).differences(&of(&other, 10));
        assert_eq!(differences.iter().map(|one| &*one.name).collect::<Vec<_>>(), ["data.instructions.0"]);
        // What is gone says nothing.
        fs_err::remove_file(&one).unwrap();
        assert_eq!(of(&one, 10).differences(&of(&other, 10)), []);
    }

    #[test]
    fn sequences_from_before_a_key_was_there_are_those_of_its_default() {
        let now = expected(&data(json!({ "text": ["a", "b"], "limit": 3 })), &tokenizer()).unwrap();
        let mut before = now.clone();
        let keys = before.recipe.get_mut("data").unwrap().as_object_mut().unwrap();
        keys.remove("document_separator").unwrap();
        keys.remove("empty_responses").unwrap();
        assert_ne!(now.differences(&before), []);
        assert_eq!(completed(before), now);
    }
}
