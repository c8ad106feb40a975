//! Decoder language models in Burn: Hugging Face folders, LoRA, streamed layers, generation with a key-value cache.
//!
//! The main type is [`Decoder`]: a plain struct of tensors, read from and written to a model folder as `transformers`
//! lays it out. Families differ by fields of [`DecoderConfig`] and by the names of their tensors, not by types.
//!
//! ```no_run
//! use burn::tensor::{Device, Int, Tensor};
//! use softshard_model::Decoder;
//!
//! let decoder = Decoder::load("models/stories260k".as_ref(), &Device::flex())?;
//! let logits = |hidden: Tensor<2>, head: &Tensor<2>| hidden.matmul(head.clone().transpose());
//! let answers = decoder.generate(&[vec![1, 403, 407]], 32, &[2], logits)?;
//! let ids = Tensor::<2, Int>::from_ints([[1, 403, 407]], &Device::flex());
//! let hidden = decoder.hidden(ids)?; // [1, 3, D]: logits are `hidden · decoder.head()ᵀ`
//! # Ok::<(), softshard_model::Error>(())
//! ```
//!
//! All parameters are `Tensor<2>` (vectors are `[1, N]`). Only what [`Decoder::train`] asks for is associated with
//! autodiff: operations on frozen parameters alone leave no graph.

mod adapter;
mod allocator;
mod attention;
mod batch;
mod builder;
mod cache;
mod config;
mod continuations;
mod convert;
mod decoder;
mod digest;
mod dora;
mod error;
mod families;
mod files;
mod footprint;
mod forward;
mod fused;
mod generate;
mod header;
mod hub;
mod layer;
mod layerwise;
mod layout;
mod linear;
mod lora;
mod memory;
mod merge;
mod names;
mod norm;
mod out_of_memory;
mod peft;
mod precision;
mod quantised;
mod residency;
mod rope;
mod stream;
mod tensors;
mod weights;

pub use allocator::keep_freed_memory;
pub use batch::{Arrangement, batches_by_length};
pub use config::{
    Activation, Block, DecoderConfig, Family, FusedQkv, LayerConfig, NormKind, Positions, RopeScaling,
};
pub use continuations::Branches;
pub use decoder::{Decoder, Trainable};
pub use digest::{adapter_blake3, config_blake3, weights_blake3};
pub use error::Error;
pub use files::read_text;
pub use footprint::TrainingBytes;
pub use generate::{Answer, Generation, Prompt, Sampling};
pub use hub::hub_name;
pub use layout::{Layout, QUERIES_PER_TILE};
pub use linear::Linear;
pub use lora::{LoraConfig, LoraMap, LoraShape};
pub use memory::{device_kind, free_bytes, peak_bytes, used_bytes};
pub use merge::{MergeInputs, Merged, check_merge, merge};
pub use norm::Norm;
pub use out_of_memory::{Fitting, OutOfMemory, guarded};
pub use precision::Precision;
pub use quantised::Bits;
pub use residency::{LoadOptions, Residency};
pub use tensors::{Tensors, read_config};
