//! Instruction data to token ids and loss masks: the sequences that teacher and student read.
//!
//! [`run`] is the stage: it reads the rows that a [`DataConfig`] names, gives each its prompt, tokenises it with the
//! [`Tokenizer`] of a Hugging Face folder, and writes the sequence datasets `train`, `valid` and `test`. [`examples`] gives
//! the same rows as prompts to answer, for the evaluation. [`demo`] makes data whose answers can be checked exactly.
//!
//! ```
//! use std::sync::atomic::AtomicBool;
//! use softshard_prepare::{DataConfig, TokenizerConfig, demo, run};
//!
//! let folder = tempfile::tempdir()?;
//! let options = demo::DemoOptions { rows: 50, vocab_size: 300, seed: 1 };
//! let files = demo::write_all(folder.path(), &options)?;
//! let data: DataConfig = serde_json::from_value(serde_json::json!({
//!     "instructions": files.instructions,
//!     "template": "none",
//!     "split": { "valid_rows": 10, "test_rows": 5 },
//! }))?;
//! let tokenizer: TokenizerConfig = serde_json::from_value(serde_json::json!({ "path": files.tokenizer }))?;
//! let summary = run(&data, &tokenizer, &folder.path().join("sequences"), &AtomicBool::new(false), &())?;
//! assert_eq!([summary.train.sequences, summary.valid.sequences, summary.test.sequences], [35, 10, 5]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod demo;
pub mod provenance;

mod chat_template;
mod compatible;
mod config;
mod conversation;
mod encode;
mod error;
mod no_tokenizer;
mod offsets;
mod rows;
mod run;
mod summary;
mod template;
mod tokenizer;
mod value;

pub use config::{Bos, DataConfig, EmptyResponses, Mask, SplitConfig, Template, TokenizerConfig};
pub use conversation::{Conversation, Message};
pub use error::Error;
pub use offsets::Tokens;
pub use rows::{FileRow, file_rows};
pub use run::{Example, examples, run};
pub use softshard_labels::Split;
pub use summary::{Dropped, MaskSummary, RowCounts, SplitSummary, Summary};
pub use template::{ChatTemplate, Rendering, minillm_prompt};
pub use tokenizer::Tokenizer;
pub use value::Value;
