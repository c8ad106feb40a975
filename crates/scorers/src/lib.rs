//! Factual-consistency scorers: how well a document supports an answer, and which parts of it not.
//!
//! The main type is [`Scorer`]: an encoder of `transformers` (RoBERTa, ModernBERT, T5) in Burn with the rules of the scorer that was
//! made of it: text form, chunks of long documents, and what its classes mean. [`Judge`] asks a decoder instead. docs/scorers.md has
//! each scorer with its source.
//!
//! ```no_run
//! use std::sync::atomic::AtomicBool;
//! use burn::tensor::Device;
//! use softshard_scorers::{OpenOptions, Pair, Scorer, Verdict};
//!
//! let folder = "models/lettucedect-base-modernbert-en-v1".as_ref();
//! let scorer = Scorer::open(folder, &OpenOptions::default(), &Device::flex())?;
//! let pair = Pair { document: "It rained all day.", answer: "The sun was out.", question: None };
//! for verdict in scorer.score(&[pair], &AtomicBool::new(false))? {
//!     match verdict {
//!         Verdict::Scored(score) => println!("{:.3}, unsupported: {:?}", score.consistent, score.spans),
//!         Verdict::Empty | Verdict::TooLong => println!("no score"),
//!     }
//! }
//! # Ok::<(), softshard_scorers::Error>(())
//! ```

mod attention;
mod batch;
mod chunks;
mod config;
mod error;
mod judge;
mod kind;
mod modernbert;
mod network;
mod published;
mod revision;
mod roberta;
mod rules;
mod scorer;
mod sentences;
mod t5;
mod tokenizer;

pub use error::Error;
pub use judge::{Asked, Judge, SYSTEM_PROMPT, user_prompt};
pub use kind::Kind;
pub use published::{Expected, Published, published};
pub use revision::snapshot;
pub use rules::{Pair, Score, Span, Verdict};
pub use scorer::{OpenOptions, Scorer};
pub use sentences::sentences;
