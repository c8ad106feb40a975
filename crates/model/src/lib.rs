//! Decoder language models in Burn: Hugging Face folders, LoRA, generation with a key-value cache.
//!
//! The main type is [`Decoder`]: a plain struct of tensors, read from and written to a model folder as `transformers`
//! lays it out. Llama and Qwen2 differ by fields of [`DecoderConfig`], not by types.
//!
//! ```no_run
//! use burn::tensor::{Device, Int, Tensor};
//! use softshard_model::Decoder;
//!
//! let decoder = Decoder::load("models/stories260k".as_ref(), &Device::flex())?;
//! let answers = decoder.generate(&[vec![1, 403, 407]], 32, &[2]);
//! let ids = Tensor::<2, Int>::from_ints([[1, 403, 407]], &Device::flex());
//! let hidden = decoder.hidden(ids); // [1, 3, D]: logits are `hidden · decoder.head()ᵀ`
//! # Ok::<(), softshard_model::Error>(())
//! ```
//!
//! All parameters are `Tensor<2>` in 32-bit floats (vectors are `[1, N]`). Only what [`Decoder::train`] asks for is
//! associated with autodiff: operations on frozen parameters alone leave no graph.

mod adapter;
mod attention;
mod batch;
mod config;
mod decoder;
mod digest;
mod error;
mod files;
mod generate;
mod layer;
mod linear;
#[cfg_attr(not(test), expect(dead_code, reason = "the loader and `Linear` take it up with `LoadOptions`"))]
mod quantised;
mod rope;
mod weights;

pub use adapter::LoraConfig;
pub use batch::batches_by_length;
pub use config::{DecoderConfig, Family};
pub use decoder::{Decoder, Trainable};
pub use digest::{adapter_blake3, config_blake3, weights_blake3};
pub use error::Error;
pub use quantised::Bits;
