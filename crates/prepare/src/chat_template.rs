//! The chat templates of a tokenizer's folder, and the special tokens that they see.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use softshard_labels::read_if_there;

use crate::Error;
use crate::template::{Source, Sources};
use crate::tokenizer::JsonObject;

/// The special tokens that transformers passes to a template, by their names.
const SPECIAL_TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The templates of a folder: `chat_template.jinja` and `additional_chat_templates/NAME.jinja`, or where there are none
/// `chat_template` of the configuration, a text or a list of named ones, or `chat_template.json`.
pub(crate) fn read(folder: &Path, config: &JsonObject) -> Result<Option<Sources>, Error> {
    let mut named = Vec::new();
    named.extend(read_file("default", &folder.join("chat_template.jinja"))?);
    let additional = folder.join("additional_chat_templates");
    if additional.is_dir() {
        for entry in fs_err::read_dir(&additional)? {
            let path = entry?.path();
            let name =
                path.file_name().and_then(|name| name.to_str()?.strip_suffix(".jinja")).map(str::to_owned);
            if let Some(name) = name {
                // A file of this folder goes before one of the same name above.
                named.retain(|source: &Source| !source.is_named(&name));
                named.extend(read_file(&name, &path)?);
            }
        }
    }
    if named.is_empty() {
        let file = folder.join("tokenizer_config.json");
        named = of_value(config.get("chat_template"), &file)?;
    }
    if named.is_empty() {
        let file = folder.join("chat_template.json");
        named = of_value(crate::tokenizer::read_json(&file)?.get("chat_template"), &file)?;
    }
    Ok(Sources::new(named))
}

fn read_file(name: &str, path: &Path) -> Result<Option<Source>, Error> {
    let Some(bytes) = read_if_there(path)? else { return Ok(None) };
    let text = String::from_utf8(bytes)
        .map_err(|error| Error::tokenizer(path, format!("expected UTF-8, found {error}")))?;
    Ok(Some(Source::new(name.to_owned(), path.display().to_string(), text)))
}

/// A text, or a list of `{"name": …, "template": …}`.
fn of_value(value: Option<&Value>, file: &Path) -> Result<Vec<Source>, Error> {
    let source =
        |name: &str, text: &str| Source::new(name.to_owned(), file.display().to_string(), text.to_owned());
    match value {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::String(text)) => Ok(vec![source("default", text)]),
        Some(Value::Array(entries)) => {
            let mut named: Vec<Source> = Vec::new();
            for entry in entries {
                let field = |name: &str| entry.get(name).and_then(Value::as_str);
                let (Some(name), Some(text)) = (field("name"), field("template")) else {
                    let problem =
                        "expected entries of `chat_template` with a `name` and a `template`, found another";
                    return Err(Error::tokenizer(file, problem));
                };
                named.retain(|source| !source.is_named(name));
                named.push(source(name, text));
            }
            Ok(named)
        }
        Some(_) => Err(Error::tokenizer(file, "expected `chat_template` as a text or a list, found neither")),
    }
}

/// The special tokens of transformers' tokenizers that a configuration does not have to name, by class.
const DEFAULTS: [(&str, &[(&str, &str)]); 4] = [
    ("LlamaTokenizer", &[("unk_token", "<unk>"), ("bos_token", "<s>"), ("eos_token", "</s>")]),
    (
        "Qwen2Tokenizer",
        &[("unk_token", "<|endoftext|>"), ("eos_token", "<|endoftext|>"), ("pad_token", "<|endoftext|>")],
    ),
    (
        "GPT2Tokenizer",
        &[("unk_token", "<|endoftext|>"), ("bos_token", "<|endoftext|>"), ("eos_token", "<|endoftext|>")],
    ),
    (
        "GPTNeoXTokenizer",
        &[
            ("unk_token", "<|endoftext|>"),
            ("bos_token", "<|endoftext|>"),
            ("eos_token", "<|endoftext|>"),
            ("pad_token", "<|padding|>"),
        ],
    ),
];

/// The special tokens that the configuration names, as the template sees them; one that it does not speak of is the
/// default of its class in transformers, one that is null is none.
pub(crate) fn special_texts(config: &JsonObject) -> BTreeMap<String, String> {
    let text = |token: &Value| match token {
        Value::String(text) => Some(text.clone()),
        other => other.get("content").and_then(Value::as_str).map(str::to_owned),
    };
    let class = config.get("tokenizer_class").and_then(Value::as_str).unwrap_or_default();
    let class = class.strip_suffix("Fast").unwrap_or(class);
    let defaults = DEFAULTS.iter().find(|(name, _)| *name == class).map_or(&[][..], |(_, tokens)| tokens);
    let token = |name: &str| match config.get(name) {
        Some(token) => text(token),
        None => defaults.iter().find(|(other, _)| *other == name).map(|(_, token)| (*token).to_owned()),
    };
    SPECIAL_TOKENS.iter().filter_map(|name| Some(((*name).to_owned(), token(name)?))).collect()
}
