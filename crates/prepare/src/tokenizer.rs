//! A Hugging Face tokenizer with what its neighbours on disk say about it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::Value;
use softshard_labels::{OwnTokenizer, Tokenizer as Fingerprint, read_if_there};
use tokenizers::PostProcessorWrapper;

use crate::compatible::{Splitting, tokens};
use crate::no_tokenizer::check_kind;
use crate::{ChatTemplate, Error, chat_template};

/// A tokenizer: text to ids and back, special ids, chat template, fingerprint.
///
/// Ids are `i32`, as in the label format. Encoding adds no special tokens of its own and never cuts or pads,
/// whatever `tokenizer.json` says; special tokens that are spelled out in the text become their ids, as in
/// Hugging Face's library.
pub struct Tokenizer {
    /// Without its post-processor, which changes no id here and cuts white space off the offsets.
    pub(crate) inner: tokenizers::Tokenizer,
    pub(crate) post_processor: Option<PostProcessorWrapper>,
    /// What those added tokens spell that take white space beside them along.
    pub(crate) stripping: HashMap<u32, String>,
    pub(crate) path: PathBuf,
    special_ids: BTreeMap<String, i32>,
    /// The end-of-sequence ids.
    stop_ids: Vec<i32>,
    /// With the end of a turn, which the chat template is asked for when it is first needed.
    all_stop_ids: OnceLock<Vec<i32>>,
    special: HashSet<i32>,
    adds_bos: bool,
    chat_template: Option<ChatTemplate>,
    fingerprint: Fingerprint,
}

impl Tokenizer {
    /// Loads `tokenizer.json` (from a folder, or named itself), and `tokenizer_config.json`,
    /// `special_tokens_map.json`, `generation_config.json`, `config.json` and `chat_template.jinja` beside it where
    /// they exist.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] where a file is broken, a special token is unknown or an id does not fit the format;
    /// [`Error::Io`]. The chat template is compiled when it is first used.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let file = if path.is_dir() { path.join("tokenizer.json") } else { path.to_owned() };
        let folder = file.parent().unwrap_or(Path::new("")).to_owned();
        check_kind(path)?;
        let bytes = read_if_there(&file)?.ok_or_else(|| {
            let hint = "a tokenizer is a Hugging Face model folder, or a tokenizer.json";
            let problem = format!("tokenizer: no file `{}`\nhint: {hint}", file.display());
            io::Error::new(io::ErrorKind::NotFound, problem)
        })?;
        let mut inner =
            tokenizers::Tokenizer::from_bytes(&bytes).map_err(|error| Error::tokenizer(&file, error))?;
        let merges_blake3 = Some(Splitting::read(&file, &bytes)?.blake3());
        inner.with_truncation(None).map_err(|error| Error::tokenizer(&file, error))?;
        inner.with_padding(None);

        let mut config = read_json(&folder.join("tokenizer_config.json"))?;
        for (name, value) in read_json(&folder.join("special_tokens_map.json"))? {
            config.entry(name).or_insert(value);
        }
        let mut generation = read_json(&folder.join("generation_config.json"))?;
        for (name, value) in read_json(&folder.join("config.json"))? {
            generation.entry(name).or_insert(value);
        }
        let tokens = tokens(&inner);
        let vocab_size = vocab_size(&tokens, &file)?;
        let (special_ids, mut stop_ids) = special_ids(&inner, &file, &config, &generation)?;
        stop_ids.retain(|id| u32::try_from(*id).is_ok_and(|id| id < vocab_size));

        let chat_template = chat_template::read(&folder, &config)?
            .map(|sources| ChatTemplate::of(sources, chat_template::special_texts(&config)));
        let fingerprint = Fingerprint {
            vocabulary_blake3: OwnTokenizer::vocabulary_blake3(&tokens),
            vocab_size,
            special_ids: special_ids.clone(),
            normalizer_blake3: normalizer_blake3(&inner, &file)?,
            merges_blake3,
            chat_template_blake3: chat_template.as_ref().map(ChatTemplate::blake3),
        };
        let special = inner
            .get_added_tokens_decoder()
            .into_iter()
            .filter_map(|(id, token)| token.special.then(|| i32::try_from(id).ok()).flatten())
            .collect();
        let adds_bos = adds_bos(&inner, special_ids.get("bos"));
        let post_processor = inner.get_post_processor().cloned();
        inner.with_post_processor(None::<PostProcessorWrapper>);
        Ok(Self {
            stripping: stripping(&inner),
            inner,
            post_processor,
            path: file,
            special_ids,
            stop_ids,
            all_stop_ids: OnceLock::new(),
            special,
            adds_bos,
            chat_template,
            fingerprint,
        })
    }

    /// Ids of `text`.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] where the model has no token for a part of the text.
    pub fn encode(&self, text: &str) -> Result<Vec<i32>, Error> {
        let encoding =
            self.inner.encode_fast(text, false).map_err(|error| Error::tokenizer(&self.path, error))?;
        encoding.get_ids().iter().map(|id| self.id(*id)).collect()
    }

    /// Text of `ids`, without special tokens.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for a negative id.
    pub fn decode(&self, ids: &[i32]) -> Result<String, Error> {
        self.decode_with(ids, true)
    }

    /// Text of `ids` with special tokens spelled out, to look at.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for a negative id.
    pub fn decode_all(&self, ids: &[i32]) -> Result<String, Error> {
        self.decode_with(ids, false)
    }

    /// Whether the id stands for a byte of characters that no token has, as `<0x0A>` in SentencePiece.
    pub fn is_byte(&self, id: i32) -> bool {
        let name = u32::try_from(id).ok().and_then(|id| self.inner.id_to_token(id));
        let digits = name.as_deref().and_then(|name| name.strip_prefix("<0x")?.strip_suffix('>'));
        digits
            .is_some_and(|digits| digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
    }

    fn decode_with(&self, ids: &[i32], skip_special_tokens: bool) -> Result<String, Error> {
        let ids: Result<Vec<u32>, _> = ids.iter().map(|id| u32::try_from(*id)).collect();
        let ids =
            ids.map_err(|_| Error::tokenizer(&self.path, "expected ids from 0, found a negative one"))?;
        self.inner.decode(&ids, skip_special_tokens).map_err(|error| Error::tokenizer(&self.path, error))
    }

    /// The beginning-of-sequence id, where known.
    pub fn bos(&self) -> Option<i32> {
        self.special_ids.get("bos").copied()
    }

    /// The end-of-sequence id, where known.
    pub fn eos(&self) -> Option<i32> {
        self.special_ids.get("eos").copied()
    }

    /// The padding id, where known.
    pub fn pad(&self) -> Option<i32> {
        self.special_ids.get("pad").copied()
    }

    /// Ids that end an answer: the end-of-sequence ids and the token with which the chat template ends a turn.
    pub fn stop_ids(&self) -> &[i32] {
        self.all_stop_ids.get_or_init(|| {
            let end_of_turn = self.end_of_turn().filter(|id| !self.stop_ids.contains(id));
            self.stop_ids.iter().copied().chain(end_of_turn).collect()
        })
    }

    /// Whether the id is a special token.
    pub fn is_special(&self, id: i32) -> bool {
        self.special.contains(&id)
    }

    /// Whether a plain text is meant to begin with the beginning-of-sequence token.
    pub fn adds_bos(&self) -> bool {
        self.adds_bos
    }

    /// The largest id + 1, added tokens included. A model's vocabulary may be wider.
    pub fn vocab_size(&self) -> u32 {
        self.fingerprint.vocab_size
    }

    /// The chat template, if the folder has one.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.chat_template.as_ref()
    }

    /// What must be equal for token ids of two runs to mean the same.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// The file that was loaded.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn id(&self, id: u32) -> Result<i32, Error> {
        i32::try_from(id)
            .map_err(|_| Error::tokenizer(&self.path, format!("expected ids below 2^31, found {id}")))
    }

    /// Whether a turn may end with the id: special tokens do, and those at which answers stop.
    pub(crate) fn ends_turns(&self, id: i32) -> bool {
        self.is_special(id) || self.stop_ids.contains(&id)
    }

    /// The special token with which the chat template ends the assistant's turn.
    fn end_of_turn(&self) -> Option<i32> {
        let ending = self.chat_template.as_ref()?.ending()?;
        let first = self.encode(ending.trim()).ok()?.first().copied();
        first.filter(|id| self.is_special(*id))
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("path", &self.path).field("fingerprint", &self.fingerprint).finish()
    }
}

pub(crate) type JsonObject = serde_json::Map<String, Value>;

/// An optional JSON file: empty where there is none.
pub(crate) fn read_json(path: &Path) -> Result<JsonObject, Error> {
    let Some(bytes) = read_if_there(path)? else { return Ok(JsonObject::new()) };
    serde_json::from_slice(&bytes).map_err(|error| Error::tokenizer(path, error))
}

/// Special ids by name, and all end-of-sequence ids: tokens named in the tokenizer's configuration come first, ids
/// in the model's configuration fill the gaps.
fn special_ids(
    inner: &tokenizers::Tokenizer,
    file: &Path,
    config: &JsonObject,
    generation: &JsonObject,
) -> Result<(BTreeMap<String, i32>, Vec<i32>), Error> {
    let id_of = |id: u32| i32::try_from(id).map_err(|_| Error::tokenizer(file, "expected ids below 2^31"));
    let mut ids = BTreeMap::new();
    for name in ["bos", "eos", "pad", "unk"] {
        let token = config.get(&format!("{name}_token"));
        let token = token.and_then(|token| token.as_str().or_else(|| token.get("content")?.as_str()));
        if let Some(token) = token {
            let Some(id) = inner.token_to_id(token) else {
                let problem = format!("expected `{name}_token` in the vocabulary, found no `{token}` there");
                return Err(Error::tokenizer(file, problem));
            };
            ids.insert(name.to_owned(), id_of(id)?);
        } else if let Some(id) = numbers(generation.get(&format!("{name}_token_id"))).first() {
            ids.insert(name.to_owned(), *id);
        }
    }
    let mut stop_ids: Vec<i32> = ids.get("eos").copied().into_iter().collect();
    for id in numbers(generation.get("eos_token_id")) {
        if !stop_ids.contains(&id) {
            stop_ids.push(id);
        }
    }
    Ok((ids, stop_ids))
}

/// A number, or a list of numbers, that can be ids.
fn numbers(value: Option<&Value>) -> Vec<i32> {
    let id = |value: &Value| value.as_i64().and_then(|id| i32::try_from(id).ok()).filter(|id| *id >= 0);
    match value {
        Some(Value::Array(values)) => values.iter().filter_map(id).collect(),
        Some(value) => id(value).into_iter().collect(),
        None => Vec::new(),
    }
}

/// What the added tokens spell that take white space beside them along.
fn stripping(inner: &tokenizers::Tokenizer) -> HashMap<u32, String> {
    let added = inner.get_added_tokens_decoder().into_iter();
    added.filter(|(_, token)| token.lstrip || token.rstrip).map(|(id, token)| (id, token.content)).collect()
}

/// Whether the post-processor puts the beginning-of-sequence token before a text. `add_bos_token` of the configuration does not
/// count beside a `tokenizer.json`, as in Hugging Face's library.
fn adds_bos(inner: &tokenizers::Tokenizer, bos: Option<&i32>) -> bool {
    let first = inner.encode_fast("a", true).ok().and_then(|encoding| encoding.get_ids().first().copied());
    bos.is_some_and(|bos| first.is_some_and(|first| i32::try_from(first) == Ok(*bos)))
}

/// Largest id + 1.
fn vocab_size(tokens: &[(u32, String)], file: &Path) -> Result<u32, Error> {
    let Some((largest, _)) = tokens.last() else {
        return Err(Error::tokenizer(file, "expected a vocabulary, found no token"));
    };
    if i32::try_from(*largest).is_err() {
        return Err(Error::tokenizer(file, format!("expected ids below 2^31, found {largest}")));
    }
    Ok(largest + 1)
}

fn normalizer_blake3(inner: &tokenizers::Tokenizer, file: &Path) -> Result<String, Error> {
    let parts = (inner.get_normalizer(), inner.get_pre_tokenizer());
    serde_json::to_string(&parts).map(|json| hex_of(&json)).map_err(|error| Error::tokenizer(file, error))
}

fn hex_of(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex().to_string()
}
