//! What a recipe says about a training run: sections `[student]`, `[student.loss]` and `[finetune]`.

use std::path::PathBuf;

use crate::loss_config::LossConfig;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use softshard_model::{Bits, DecoderConfig, LoadOptions, LoraConfig, LoraShape, Precision, Residency};

/// One training run: which model, on what, for how long. Recipe sections `[student]` and `[finetune]`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Hugging Face folder of the model to start from; with `init = "random"` only its `config.json` is read.
    pub model: PathBuf,
    /// Where the first weights come from.
    #[serde(default)]
    pub init: Init,
    /// Type of frozen weights and of activations; what learns is f32.
    #[serde(default)]
    pub precision: Precision,
    /// Where the weights of the layers are; `streamed` trains an adapter over a model larger than the memory.
    #[serde(default)]
    pub residency: Residency,
    /// Bits of the matrices of its layers, 8 or 4, if they are kept as codes: a little more than that many bits a weight, at
    /// the price of rounding.
    pub quantise: Option<Bits>,
    /// What the forward pass keeps for the backward pass; streamed layers are always computed again.
    #[serde(default)]
    pub checkpointing: Checkpointing,
    /// What is learnt; `[student]` distils and `[finetune]` is supervised unless it says otherwise.
    pub objective: Option<Objective>,
    /// Train low-rank adapters and leave the base frozen; without this section all weights are trained.
    pub lora: Option<LoraConfig>,
    /// Go on from this adapter, as PEFT writes it: its factors are the first ones, and rank, scale, targets and
    /// dropout are its own, so there is no section `lora` beside it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter: Option<PathBuf>,
    /// Weights of the loss; not read by `supervised`, nor by `finetune`, where alpha is 0.
    #[serde(default)]
    pub loss: LossConfig,
    /// Several label datasets instead of the recipe's own; empty: `output.labels` alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mixture: Vec<Mixed>,
    /// Passes over the data.
    #[serde(default = "default_epochs")]
    pub epochs: u32,
    /// Stop after this many optimizer steps, even within an epoch; 0: no limit.
    #[serde(default)]
    pub max_steps: u64,
    /// What turns gradients into steps.
    #[serde(default)]
    pub optimizer: OptimizerKind,
    /// How the learning rate goes from its peak to its last value.
    #[serde(default)]
    pub schedule: Schedule,
    /// Peak of the learning rate, reached after the warm-up.
    #[serde(default = "default_learning_rate")]
    pub learning_rate: f64,
    /// The learning rate that the schedule goes to: it would be reached one step after the last.
    #[serde(default = "default_final_learning_rate")]
    pub final_learning_rate: f64,
    /// Steps of linear warm-up from zero.
    #[serde(default)]
    pub warmup_steps: u64,
    /// Steps of the decay at the end of `warmup_stable_decay`; 0: a tenth of the run.
    #[serde(default)]
    pub decay_steps: u64,
    /// Decoupled weight decay, applied to matrices, not to norms and biases.
    #[serde(default = "default_weight_decay")]
    pub weight_decay: f64,
    /// Largest global norm of the gradients.
    #[serde(default = "default_clip_norm")]
    pub clip_norm: f64,
    /// Average what learns over the steps with this decay, as 0.999; the average is evaluated and written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ema_decay: Option<f64>,
    /// Fill micro-batches with whole sequences of any length, one after the other, instead of like lengths side by side.
    /// No sequence sees another, and the loss is the same.
    #[serde(default)]
    pub packing: bool,
    /// Tokens of one micro-batch, padding included. A longer sequence is a micro-batch of its own.
    #[serde(default = "default_max_tokens_per_batch")]
    pub max_tokens_per_batch: usize,
    /// Micro-batches whose gradients are summed before a step.
    #[serde(default = "default_accumulate_batches")]
    pub accumulate_batches: usize,
    /// Rows of hidden states that meet the vocabulary at a time: bounds the logits in memory.
    #[serde(default = "default_rows_per_chunk")]
    pub rows_per_chunk: usize,
    /// Steps between two checkpoints; 0: only at the end or when interrupted.
    #[serde(default = "default_checkpoint_every_steps")]
    pub checkpoint_every_steps: u64,
    /// Checkpoints that are kept, beside the best one.
    #[serde(default = "default_keep_checkpoints")]
    pub keep_checkpoints: usize,
    /// Held-out data, looked at during the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evaluation: Option<EvaluationConfig>,
    /// Seeds the first weights, the dropout and the order of the data.
    #[serde(default = "default_seed")]
    pub seed: u64,
}

/// Where the first weights come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Init {
    /// From the folder's safetensors.
    #[default]
    Pretrained,
    /// Drawn as Hugging Face draws them, from the seed.
    Random,
}

/// What the forward pass keeps for the backward pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Checkpointing {
    /// All activations.
    #[default]
    None,
    /// The input of each layer; the backward pass computes one layer at a time again. One more forward pass, the memory of
    /// one layer's activations, the same numbers.
    Layer,
}

/// What is learnt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// Gold tokens and the teacher's distribution, both from label shards.
    Distill,
    /// Gold tokens of the answers only, from the sequences: fine-tuning.
    Supervised,
    /// Every token, answers or not: from the sequences if alpha is 0; else from label shards, with the teacher's distribution
    /// where there are labels.
    Pretrain,
}

impl Objective {
    /// Whether it learns from label shards; else from sequences.
    pub fn reads_labels(self, loss: &LossConfig) -> bool {
        match self {
            Objective::Distill => true,
            Objective::Supervised => false,
            Objective::Pretrain => !loss.alpha.is_zero(),
        }
    }
}

/// What turns gradients into steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerKind {
    /// AdamW (arXiv 1711.05101), as PyTorch has it.
    #[default]
    Adamw,
    /// Muon for the matrices of the layers, AdamW for all else: where all weights are trained.
    Muon,
}

/// How the learning rate goes from its peak, after the warm-up, to its last value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Half a cosine.
    #[default]
    Cosine,
    /// A straight line.
    Linear,
    /// It stays at its peak.
    Constant,
    /// It stays, then falls in a straight line over the last `decay_steps`.
    WarmupStableDecay,
}

/// One label dataset of several.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mixed {
    /// Folder of the label dataset itself, as `.../labels/train`.
    pub labels: PathBuf,
    /// How often its sequences come in one epoch: 1 is once each, 0.5 another half of them in each epoch, 2 twice; at
    /// most 1000.
    #[serde(default = "default_weight")]
    pub weight: f64,
}

/// Held-out data, looked at during the run. Recipe section `[student.evaluation]`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EvaluationConfig {
    /// Dataset of the kind that is trained on; `valid` beside it where nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<PathBuf>,
    /// Steps between two evaluations; there is one after the last step too.
    pub every_steps: u64,
    /// Sequences that are looked at, spread evenly over the data: of a mixture each dataset has its share; 0: all.
    #[serde(default)]
    pub max_sequences: usize,
    /// What makes a step the best one: the least of this.
    #[serde(default)]
    pub best_by: Metric,
    /// Stop when so many evaluations in a row were no better than the best one; 0: never.
    #[serde(default)]
    pub patience: u64,
    /// Which step is written at the end.
    #[serde(default)]
    pub export: Export,
}

/// A number that says how good a student is on held-out data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Mean -log probability of the gold tokens, nats.
    #[default]
    Nll,
    /// Mean KL from the teacher, nats.
    Kl,
    /// Expected calibration error.
    Ece,
}

/// Which step is written at the end of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Export {
    /// The best one on held-out data.
    #[default]
    Best,
    /// The last one.
    Last,
}

impl Mixed {
    /// A dataset of its own: once in each epoch.
    pub fn once(folder: PathBuf) -> Self {
        Mixed { labels: folder, weight: default_weight() }
    }
}

impl TrainConfig {
    /// Whether an adapter learns over frozen weights; else the whole model.
    pub fn trains_adapter(&self) -> bool {
        self.lora.is_some() || self.adapter.is_some()
    }

    /// The linear maps of the model that have factors, if an adapter learns; of one that there is its header is read.
    ///
    /// # Errors
    /// The adapter cannot be on this model, or its training cannot go on.
    pub fn lora_shape(&self, model: &DecoderConfig) -> Result<Option<LoraShape>, softshard_model::Error> {
        match (&self.adapter, &self.lora) {
            (Some(adapter), _) => model.adapter_shape(adapter).map(Some),
            (None, Some(lora)) => model.lora_shape(lora).map(Some),
            (None, None) => Ok(None),
        }
    }

    /// How the weights are brought into memory.
    pub fn load_options(&self) -> LoadOptions {
        LoadOptions { precision: self.precision, residency: self.residency, quantise: self.quantise }
    }
}

fn default_epochs() -> u32 {
    3
}
fn default_learning_rate() -> f64 {
    1e-5
}
fn default_final_learning_rate() -> f64 {
    1e-7
}
fn default_weight_decay() -> f64 {
    1e-2
}
fn default_clip_norm() -> f64 {
    1.0
}
fn default_max_tokens_per_batch() -> usize {
    4096
}
fn default_accumulate_batches() -> usize {
    1
}
fn default_rows_per_chunk() -> usize {
    256
}
fn default_checkpoint_every_steps() -> u64 {
    500
}
fn default_keep_checkpoints() -> usize {
    2
}
fn default_weight() -> f64 {
    1.0
}
fn default_seed() -> u64 {
    10
}
