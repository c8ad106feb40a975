//! A small byte-level BPE tokenizer trained on the demo data.

use std::io::Write;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use serde_json::json;
use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

use super::write_file;
use crate::conversation::Message;
use crate::rows::{Content, Inputs};
use crate::template::plain_prompt;
use crate::{DataConfig, Error};

/// Begins and ends a text and fills the rest of a batch.
const END_OF_TEXT: &str = "<|endoftext|>";
/// 256 bytes and the special token.
const SMALLEST_VOCABULARY: usize = 257;

/// Trains byte-level BPE on prompts (template `none`) and responses of a JSONL file and writes `tokenizer.json` and
/// `tokenizer_config.json`, as Hugging Face's libraries read them. The same rows give the same bytes.
///
/// # Errors
/// [`Error::Row`] where the data is bad; [`Error::Tokenizer`] if `vocab_size` is below 257; [`Error::Io`].
pub fn train_tokenizer(jsonl: &Path, vocab_size: usize, out_dir: &Path) -> Result<(), Error> {
    let failed = |error: tokenizers::Error| Error::tokenizer(out_dir, error);
    if vocab_size < SMALLEST_VOCABULARY {
        let problem =
            format!("expected a vocabulary of at least {SMALLEST_VOCABULARY} tokens, found {vocab_size}");
        return Err(Error::tokenizer(out_dir, problem));
    }
    let texts = texts(jsonl)?;
    let end_of_text = AddedToken::from(END_OF_TEXT, true);
    let trainer = BpeTrainer::builder()
        .vocab_size(vocab_size)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(vec![end_of_text])
        .build();
    let mut tokenizer = Tokenizer::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(ByteLevel::default().add_prefix_space(false)));
    tokenizer.with_decoder(Some(ByteLevelDecoder::default()));
    tokenizer.train(&mut TrainerWrapper::from(trainer), texts.into_iter()).map_err(failed)?;

    let config = json!({
        "add_bos_token": false,
        "add_prefix_space": false,
        "bos_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": false,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "tokenizer_class": "PreTrainedTokenizerFast",
    });
    fs_err::create_dir_all(out_dir)?;
    let text = tokenizer.to_string(true).map_err(failed)?;
    for (name, text) in [("tokenizer.json", text), ("tokenizer_config.json", format!("{config:#}\n"))] {
        write_file(&out_dir.join(name), |writer| writer.write_all(text.as_bytes()))?;
    }
    Ok(())
}

fn texts(jsonl: &Path) -> Result<Vec<String>, Error> {
    let data: DataConfig = serde_json::from_value(json!({ "instructions": jsonl }))
        .map_err(|error| Error::Config(format!("[data]: {error}")))?;
    let text = |content: &Content| match content {
        Content::Instruction { instruction, context, response } => {
            format!("{}{response}", plain_prompt(instruction, context))
        }
        Content::Conversation(conversation) => {
            let texts: Vec<&str> = conversation.messages.iter().map(Message::text).collect();
            texts.join("\n")
        }
        Content::Completion { prompt, completion } => format!("{prompt}{completion}"),
        Content::Document(text) => text.clone(),
        Content::Tokens { .. } => String::new(),
    };
    let (never, mut texts) = (AtomicBool::new(false), Vec::new());
    Inputs::open(&data, None, &never)?.for_each_step(&data, &never, |rows| {
        texts.extend(rows.iter().map(|row| text(&row.content)));
        Ok(())
    })?;
    Ok(texts)
}
