//! Stage 2: label shards to an adapter, or to a whole model. The same loop fine-tunes a teacher and pretrains.
//!
//! [`run`] is the stage. It reads labels (or sequences) and a Hugging Face folder, never a teacher.

mod batches;
mod checkpoint;
mod config;
mod examples;
mod gradients;
mod inputs;
mod loss_config;
mod metrics;
mod optimizer;
mod pass;
mod run;
mod steps;
mod trainer;

pub use config::{
    Checkpointing, EvaluationConfig, Export, Init, Metric, Mixed, Objective, Optimizer, Schedule, TrainConfig,
};
pub use examples::same_temperature;
pub use inputs::TrainInputs;
pub use loss_config::{Alpha, AlphaRule, LossConfig};
pub use metrics::HeldOut;
pub use optimizer::{AdamW, Cosine, clip_global_norm};
pub use pass::Breakdown;
pub use run::run;
pub use trainer::Summary;
