//! What happens at the vocabulary: the teacher's selection and the student's distillation loss.
//!
//! Legend: N rows (labelled positions), C rows of one chunk, D model width, K kept entries, V vocabulary.
//!
//! The teacher's [`label_rows`] turns hidden states into sparse labels (the most probable tokens, the log
//! partition, the mass that was cut). The student's [`DistillLoss`] turns such labels into a loss that a gradient
//! can be pulled through. Both multiply by the head in chunks of rows: a tensor of `[N, V]` never exists. [`logits`]
//! are f32 whatever the weights are.
//!
//! ```
//! use burn::tensor::{Device, Tensor};
//! use softshard_losses::{DistillLoss, HeadOptions, Keep, Targets, label_rows};
//!
//! let device = Device::flex();
//! let head = Tensor::<2>::from_data([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], &device);
//! let hidden = Tensor::<2>::from_data([[2.0, -1.0]], &device);
//!
//! let options = HeadOptions { keep: Keep::TopK { k: 2 }, logit_scale: 1.0, temperatures: &[], rows_per_chunk: 64 };
//! let labels = label_rows(hidden.clone(), head.clone(), &[0], &[], &options)?;
//! assert_eq!(labels.token_ids, [0, 2]);
//!
//! // A student that is the teacher: the divergence is zero.
//! let targets = Targets::of(vec![0], &labels);
//! let student = hidden.autodiff().require_grad();
//! let loss = DistillLoss::forward_kl(1.0, 64);
//! let value = loss.compute(student.clone(), head, &targets, 1.0);
//! assert!(value.divergence_sum.abs() < 1e-6);
//! assert!(student.grad(&value.loss.backward()).is_some());
//! # Ok::<(), softshard_losses::HeadError>(())
//! ```

mod best;
pub mod calibration;
mod chunk;
#[cfg(feature = "cube")]
mod cube;
mod distill;
mod divergence;
mod error;
mod head;
mod labels;
mod passes;
mod product;
mod select;
mod split;
mod targets;
mod wide;

pub use distill::{DistillLoss, Evaluation, LossValue};
pub use divergence::{Divergence, Tail};
pub use error::HeadError;
pub use head::{label_logits, label_rows};
pub use labels::{HeadLabels, HeadOptions};
pub use product::{logits, next_logits};
pub use select::{Keep, RowLabels, select, top_k};
pub use targets::{Targets, at_temperature, at_temperature_without_tail};
