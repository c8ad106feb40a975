//! What a run will hold in memory at most, part by part, before anything is loaded.
//!
//! The sizes are those of what the loop keeps: weights, what learns with its moments and gradients, the graphs of the micro-batches that
//! are computed at a time, what passes while a gradient is computed, and batches that were read ahead. Shards of labels
//! are mapped: the system takes their pages back when it needs them, so they do not count.

use std::fmt;

use anyhow::Result;
use serde::Serialize;
use softshard_losses::{Divergence, Tail};
use softshard_model::{DecoderConfig, LoadOptions, Precision};

use crate::{
    config::{Checkpointing, OptimizerKind, TrainConfig},
    examples::Examples,
    inputs::TrainInputs,
    steps::prefetched_steps,
};

/// Numbers of parameters that learn, gradients and moments: 32 bits.
const F32: u64 = 4;
/// The program with its threads, the recipe and the tokenizer: measured.
const PROGRAM: u64 = 24 << 20;
/// Tensors of the size of a chunk's logits that are there together: see `DistillLoss::compute`.
const LOGITS: u64 = 3;
/// More of them where each token of a uniform tail is an event of its own.
const LOGITS_OF_EVENTS: u64 = 3;
/// Of a bf16 matrix on the CPU: its copies in 32 bits, and as the product reads them, bytes a number.
const CAST: u64 = 6;

/// What a run will hold in memory at most.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryPlan {
    /// What is in memory together when it is most, with bytes.
    pub parts: Vec<Part>,
}

/// One part of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Part {
    /// What it is.
    pub name: String,
    /// Its size.
    pub bytes: u64,
}

/// The largest micro-batch of a run.
struct Sizes {
    /// Its tokens, padding included.
    tokens: u64,
    /// Tokens of the longest sequence.
    longest: u64,
    /// How many are computed at a time.
    at_a_time: u64,
    /// Tokens of these together: small data does not fill all of them.
    in_flight: u64,
    /// How many a step has.
    of_step: u64,
    /// Tokens of all sequences.
    all: u64,
}

impl MemoryPlan {
    /// For this run, from its recipe, the model's `config.json` and the lengths of the data.
    ///
    /// # Errors
    /// Data or configuration that cannot be read, or a device whose memory decides and is not known.
    pub fn of(inputs: &TrainInputs) -> Result<Self> {
        let examples = Examples::open(inputs.data, inputs.objective, &inputs.config.loss)?;
        Self::over(inputs, &examples)
    }

    /// The same over data that is open.
    pub(crate) fn over(inputs: &TrainInputs, examples: &Examples) -> Result<Self> {
        let config = inputs.config;
        let shape = DecoderConfig::load(&config.model)?;
        let device = &inputs.devices[0].0;
        let streamed = config.load_options().is_streamed(&shape, device)?;
        let sizes = Sizes::of(inputs, examples, streamed);
        let mut parts = Vec::new();
        let mut part = |name: String, bytes: u64| parts.push(Part { name, bytes });
        part("program".into(), PROGRAM);
        part(weights_name(config, streamed), weights(&shape, config, streamed));
        let learns = match &config.lora {
            Some(lora) => shape.lora_parameter_count(lora),
            None => shape.parameter_count() as u64,
        };
        if config.lora.is_some() {
            part("adapter".into(), F32 * learns);
        }
        let with_one_moment = match config.optimizer {
            OptimizerKind::Adamw => 0,
            OptimizerKind::Muon => shape.numbers_in_matrices_of_layers(),
        };
        let moments = F32 * (2 * learns - with_one_moment);
        part("moments of the optimizer".into(), moments);
        if config.ema_decay.is_some() {
            part("average of the weights".into(), F32 * learns);
        }
        let (copies, graph) = (sizes.gradient_sets(), Graph::of(&shape, config, streamed, &sizes));
        let gradients = copies * F32 * learns;
        let tokens = sizes.tokens.max(1);
        let kept = graph.kept * sizes.in_flight / tokens;
        // Micro-batches that are computed at the same time are seldom at their most at the same time: of each further one a half.
        let passing = graph.passing * (sizes.in_flight + tokens) / (2 * tokens);
        // Written between steps, a file of all moments at a time.
        let checkpoint = moments;
        if checkpoint > gradients + kept + passing {
            part("a checkpoint that is written".into(), checkpoint);
        } else {
            part(format!("gradients, {copies} times"), gradients);
            let tokens = format!("{} tokens in {} micro-batches", sizes.in_flight, sizes.at_a_time);
            part(format!("{} of {tokens}", graph.name), kept);
            part(graph.passing_name.into(), passing);
        }
        // The reader holds one more in its hands, and the loop another.
        let steps = prefetched_steps(config) as u64 + 2;
        let tokens = steps.saturating_mul(sizes.of_step).saturating_mul(sizes.tokens).min(steps * sizes.all);
        part("batches read ahead".into(), tokens.saturating_mul(examples.bytes_per_token()));
        Ok(Self { parts })
    }

    /// Their sum.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes).sum()
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> = self
            .parts
            .iter()
            .filter(|part| part.bytes > 0)
            .map(|part| format!("{} {}", part.name, megabytes(part.bytes)))
            .collect();
        write!(formatter, "{} expected at most: {}", megabytes(self.bytes()), parts.join(", "))
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

fn weights_name(config: &TrainConfig, streamed: bool) -> String {
    let LoadOptions { precision, quantise, .. } = config.load_options();
    let how = match (streamed, quantise) {
        (true, _) => ", streamed: two layers".to_owned(),
        (false, Some(bits)) => format!(", layers in {} bits", u8::from(bits)),
        (false, None) => String::new(),
    };
    format!("weights, {}{how}", precision.name())
}

fn weights(shape: &DecoderConfig, config: &TrainConfig, streamed: bool) -> u64 {
    if streamed {
        shape.streamed_bytes(config.precision)
    } else {
        shape.resident_bytes(config.precision, config.quantise)
    }
}

impl Sizes {
    fn of(inputs: &TrainInputs, examples: &Examples, streamed: bool) -> Self {
        let lengths = || examples.rows().map(|row| examples.length(row) as u64);
        let (longest, all) = (lengths().max().unwrap_or(0), lengths().sum::<u64>());
        let workers = if streamed { 1 } else { inputs.workers().max(1) };
        let of_step = inputs.config.accumulate_batches;
        let tokens = longest.max(all.min(inputs.config.max_tokens_per_batch as u64));
        let at_a_time = (of_step.min(workers) as u64).min(all.div_ceil(tokens.max(1)).max(1));
        let in_flight = all.min(at_a_time.saturating_mul(tokens));
        Self { tokens, longest, at_a_time, in_flight, of_step: of_step as u64, all }
    }

    /// Where a step has more micro-batches than are computed at a time, their sum is there beside those under way.
    fn gradient_sets(&self) -> u64 {
        if self.of_step == 1 { 1 } else { self.at_a_time + u64::from(self.of_step > self.at_a_time) }
    }
}

/// The graphs of one micro-batch.
struct Graph {
    name: &'static str,
    kept: u64,
    passing_name: &'static str,
    passing: u64,
}

impl Graph {
    fn of(shape: &DecoderConfig, config: &TrainConfig, streamed: bool, sizes: &Sizes) -> Self {
        let (precision, lora) = (config.precision, config.lora.as_ref());
        let of_token = shape.training_bytes_per_token(precision, lora);
        let (tokens, layers) = (sizes.tokens, shape.num_hidden_layers as u64);
        let by_layer = streamed || config.checkpointing == Checkpointing::Layer;
        let casts = |bytes: u64| if precision == Precision::Bf16 { bytes / 2 * CAST } else { 0 };
        let dense = if config.quantise.is_some() { shape.largest_matrix_bytes(precision) } else { 0 };
        let seen = sizes.longest.min(softshard_model::QUERIES_PER_TILE as u64);
        let of_layer = tokens * of_token.passing.max(of_token.scores * seen);
        let of_layer = of_layer + dense + casts(shape.largest_matrix_bytes(precision));

        let (vocabulary, width) = (shape.vocab_size as u64, shape.embedding_size as u64);
        let rows = tokens.min(config.rows_per_chunk as u64);
        let states = 3 * F32 * tokens * width;
        let loss = &config.loss;
        let events = loss.tail == Tail::Uniform && loss.divergence != Divergence::ForwardKl;
        let logits = LOGITS + if events { LOGITS_OF_EVENTS } else { 0 };
        let head = logits * F32 * rows * vocabulary + states;
        let head = head + casts(vocabulary * width * precision.bytes() as u64);
        let head = if lora.is_none() { head + 3 * F32 * vocabulary * width } else { head };

        let (name, kept, of_layer) = if by_layer {
            let graph = tokens * of_token.kept;
            ("inputs of all layers", tokens * of_token.input * (layers + 1), of_layer + graph)
        } else {
            ("graph of all layers", tokens * of_token.kept * layers, of_layer)
        };
        let (passing_name, passing) =
            if head > of_layer { ("chunk of the head", head) } else { ("gradient of a layer", of_layer) };
        Self { name, kept, passing_name, passing }
    }
}
