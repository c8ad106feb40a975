//! Stage 2: label shards to an adapter, or to a whole model. The same loop fine-tunes a teacher and pretrains.
//!
//! [`run`] is the stage. It reads labels (or sequences) and a Hugging Face folder, never a teacher.

mod average;
mod batches;
mod check;
mod checkpoint;
mod config;
mod evaluation;
mod example;
mod examples;
mod gradients;
mod identity;
mod inputs;
mod inspection;
mod loss_config;
mod memory;
mod metrics;
mod muon;
mod optimizer;
mod order;
mod pass;
mod replicas;
mod run;
mod schedule;
mod steps;
mod targets;
mod tensor_file;
mod trainer;

pub use checkpoint::Best;
pub use config::{
    Checkpointing, EvaluationConfig, Export, Init, Metric, Mixed, Objective, OptimizerKind, Schedule,
    TrainConfig,
};
pub use examples::same_temperature;
pub use inputs::TrainInputs;
pub use loss_config::{Alpha, AlphaRule, LossConfig};
pub use memory::{MemoryPlan, Part};
pub use optimizer::{Optimizer, clip_global_norm};
pub use pass::Breakdown;
pub use run::run;
pub use schedule::LearningRate;
pub use trainer::Summary;
