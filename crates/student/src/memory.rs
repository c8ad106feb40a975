//! What a run will hold in memory at most, part by part, before anything is loaded.
//!
//! The sizes are those of what the loop keeps: weights, what learns with its moments and gradients, the graphs of the micro-batches that
//! are computed at a time, what passes while a gradient is computed, data that stays in memory and batches that were read ahead; and
//! what the allocator cannot use between them. Shards of labels are mapped: the system takes their pages back when it needs them, so
//! they do not count.

use std::fmt;

use anyhow::Result;
use serde::Serialize;
use softshard_losses::{Divergence, Tail};
use softshard_model::{
    Arrangement, DecoderConfig, Layout, LoadOptions, LoraShape, Precision, QUERIES_PER_TILE,
};
use softshard_products::{WIDE_BYTES, uses_matrix_units};

use crate::{
    config::{Checkpointing, OptimizerKind, TrainConfig},
    evaluation::HeldOutData,
    examples::Examples,
    inputs::TrainInputs,
    order::Order,
    steps::{Steps, prefetched_steps},
};

/// Numbers of parameters that learn, gradients and moments: 32 bits.
const F32: u64 = 4;
/// The program with its threads, the recipe and the tokenizer: measured.
const PROGRAM: u64 = 27 << 20;
/// Tensors of the size of a chunk's logits that are there together: see `DistillLoss::compute`.
const LOGITS: u64 = 3;
/// More of them where each token of a uniform tail is an event of its own.
const LOGITS_OF_EVENTS: u64 = 3;
/// Of a number that matrix units read, bytes; of the left matrix at most, and of a thread's part of the
/// right one and of attention.
const PACKED: u64 = 6;
const MOST_PACKED: u64 = 16 << 20;
const PACKED_BY_THREAD: u64 = 2 << 20;
/// Tensors of the size of a parameter that are there while it is updated.
const OF_UPDATE: u64 = 5;
/// Of what is made anew in every step one part in so many lies between tensors, where none fits: measured, docs/log.md.
const USED_PER_GAP: u64 = 8;

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
    /// Its tokens.
    tokens: u64,
    /// Tokens of the longest sequence.
    longest: u64,
    /// How many are computed at a time.
    at_a_time: u64,
    /// Tokens of those that are computed at a time.
    in_flight: u64,
    /// Gradients of how many there are at a time, or of their sum.
    sets: u64,
    /// Tokens of all sequences.
    all: u64,
    /// What it is computed in.
    activations: Precision,
}

impl MemoryPlan {
    /// For this run, from its recipe, the model's `config.json` and the lengths of the data.
    ///
    /// # Errors
    /// Data or configuration that cannot be read, or a device whose memory decides and is not known.
    pub fn of(inputs: &TrainInputs) -> Result<Self> {
        let config = inputs.config;
        let examples = Examples::open(inputs.data, inputs.objective, &config.loss)?;
        let shape = DecoderConfig::load(&config.model)?;
        examples.check_fit(inputs, &shape)?;
        let held_out = config.evaluation.as_ref().map(|held_out| HeldOutData::open(inputs, held_out, &shape));
        Self::over(inputs, &shape, &examples, held_out.transpose()?.as_ref(), &Steps::new(config, &examples))
    }

    /// The same over data that is open, in these steps.
    pub(crate) fn over(
        inputs: &TrainInputs,
        shape: &DecoderConfig,
        examples: &Examples,
        held_out: Option<&HeldOutData>,
        steps: &Steps,
    ) -> Result<Self> {
        let config = inputs.config;
        let lora = config.lora_shape(shape)?;
        let streamed = config.load_options().is_streamed(shape, &inputs.devices[0].0)?;
        let sizes = Sizes::of(inputs, examples, steps, streamed);
        let mut plan = Self { parts: Vec::new() };
        plan.part("program", PROGRAM);
        plan.part(weights_name(config, streamed), weights(shape, config, streamed));
        plan.add_step(shape, config, lora.as_ref(), streamed, &sizes);
        plan.add_data(config, examples, held_out, &sizes);
        Ok(plan)
    }

    fn part(&mut self, name: impl Into<String>, bytes: u64) {
        self.parts.push(Part { name: name.into(), bytes });
    }

    /// What learns, and what a step makes.
    fn add_step(
        &mut self,
        shape: &DecoderConfig,
        config: &TrainConfig,
        lora: Option<&LoraShape>,
        streamed: bool,
        sizes: &Sizes,
    ) {
        let learns = match lora {
            Some(lora) => shape.lora_parameter_count(lora),
            None => shape.parameter_count() as u64,
        };
        if lora.is_some() {
            self.part("adapter", F32 * learns);
        }
        let with_one_moment = match config.optimizer {
            OptimizerKind::Adamw => 0,
            OptimizerKind::Muon => shape.numbers_in_matrices_of_layers(),
        };
        let moments = F32 * (2 * learns - with_one_moment);
        self.part("moments of the optimizer", moments);
        let averages = if config.ema_decay.is_some() { F32 * learns } else { 0 };
        if averages > 0 {
            self.part("average of the weights", averages);
        }
        let (sets, gradients) = (sizes.sets, F32 * learns);
        self.part(format!("gradients, {sets} times"), sets * gradients);
        let graph = Graph::of(shape, config, lora, streamed, sizes);
        let tokens = sizes.tokens.max(1);
        // As the gradients of a layer come, its part of the graph goes: a micro-batch is at its most with one or the other.
        let beyond = scaled(graph.kept.saturating_sub(gradients), sizes.in_flight, tokens);
        // Micro-batches that are computed at the same time are seldom at their most at the same time: of each further one a half.
        let passing = scaled(graph.passing, sizes.in_flight + tokens, 2 * tokens);
        let largest = if lora.is_some() { 0 } else { shape.numbers_in_largest_matrix() };
        let update = OF_UPDATE * F32 * largest;
        if update > beyond + passing {
            self.part("update of the largest matrix", update);
        } else {
            let tokens = format!("{} tokens in {} micro-batches", sizes.in_flight, sizes.at_a_time);
            self.part(format!("{} of {tokens}, but gradients", graph.name), beyond);
            self.part(graph.passing_name, passing);
        }
        if uses_matrix_units() {
            let widest = shape.intermediate_size.max(shape.hidden_size) as u64;
            let left = (PACKED * sizes.tokens * widest).min(MOST_PACKED);
            let threads = rayon::current_num_threads() as u64;
            self.part("packed matrices", sizes.at_a_time * left + threads * PACKED_BY_THREAD);
        }
        // Where a whole model learns, every step makes new weights and moments.
        let renewed = if lora.is_some() { 0 } else { F32 * learns + moments + averages };
        let anew = sets * gradients + update.max(beyond + passing) + renewed;
        self.part("fragmentation", anew / USED_PER_GAP);
    }

    /// Data in memory.
    fn add_data(
        &mut self,
        config: &TrainConfig,
        examples: &Examples,
        held_out: Option<&HeldOutData>,
        sizes: &Sizes,
    ) {
        let name = if examples.has_teacher() { "row groups of labels, decoded" } else { "sequences" };
        self.part(name, examples.bytes_in_memory());
        if let Some(held_out) = held_out {
            self.part(format!("held-out {name}"), held_out.bytes_in_memory());
        }
        // The reader holds one more in its hands, and the loop another.
        let steps = prefetched_steps(config) as u64 + 2;
        let of_step = config.accumulate_batches as u64;
        let tokens = steps.saturating_mul(of_step).saturating_mul(sizes.tokens).min(steps * sizes.all);
        self.part("batches read ahead", tokens.saturating_mul(examples.bytes_per_token()));
    }

    /// Their sum.
    pub fn bytes(&self) -> u64 {
        // Sizes that a file says of itself can be anything.
        self.parts.iter().map(|part| part.bytes).fold(0, u64::saturating_add)
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
        write!(formatter, "{} expected: {}", megabytes(self.bytes()), parts.join(", "))
    }
}

/// `bytes · numerator / denominator`.
fn scaled(bytes: u64, numerator: u64, denominator: u64) -> u64 {
    let scaled = u128::from(bytes) * u128::from(numerator) / u128::from(denominator);
    u64::try_from(scaled).unwrap_or(u64::MAX)
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
    fn of(inputs: &TrainInputs, examples: &Examples, steps: &Steps, streamed: bool) -> Self {
        let lengths = || examples.rows().map(|row| examples.length(row) as u64);
        let (longest, all) = (lengths().max().unwrap_or(0), lengths().sum::<u64>());
        let first = &inputs.devices[0].0;
        let in_this_memory = inputs.devices.iter().filter(|(device, _)| device == first);
        let at_most = |limit: usize| {
            let workers: usize = in_this_memory.clone().map(|&(_, workers)| workers.clamp(1, limit)).sum();
            workers.min(inputs.config.accumulate_batches)
        };
        let unsummed = at_most(if streamed { 1 } else { usize::MAX });
        // A device's share of a step waits for threads.
        let at_a_time = at_most(if streamed { 1 } else { rayon::current_num_threads() });
        let activations = inputs.config.precision.of_activations(first);
        let mut sizes = Self { tokens: 0, longest, at_a_time: 1, in_flight: 0, sets: 1, all, activations };
        steps.each_of_first_epoch(examples, |step| {
            let tokens = |batch: &Vec<u32>| batch.iter().map(|&row| examples.length(row) as u64).sum::<u64>();
            let tokens: Vec<u64> = step.iter().map(tokens).collect();
            for (number, together) in tokens.chunks(unsummed).enumerate() {
                // Beside those under way there is the sum of those before.
                sizes.sets = sizes.sets.max((together.len() + number.min(1)) as u64);
                for together in together.chunks(at_a_time) {
                    sizes.tokens = together.iter().copied().fold(sizes.tokens, u64::max);
                    sizes.at_a_time = sizes.at_a_time.max(together.len() as u64);
                    sizes.in_flight = sizes.in_flight.max(together.iter().sum());
                }
            }
        });
        // The first epoch of a mixture need not have the longest.
        sizes.tokens = sizes.tokens.max(longest);
        sizes.in_flight = sizes.in_flight.max(longest);
        sizes
    }

    /// Texts as long as any, as the largest micro-batch holds them; and the scores of a tile of queries there, for each head.
    fn layout(&self, arrangement: Arrangement) -> (Layout, u64) {
        let [tokens, longest] =
            [self.tokens, self.longest.max(1)].map(|count| usize::try_from(count).unwrap_or(usize::MAX));
        let tile = QUERIES_PER_TILE as u64;
        if arrangement == Arrangement::Packed && tokens > longest {
            let keys = self.tokens.min(self.longest + tile);
            return (
                Layout::packed(&[vec![longest; tokens / longest]], tokens),
                tile.min(self.tokens) * keys,
            );
        }
        (Layout::causal(longest), self.tokens * self.longest.min(tile))
    }
}

/// Bytes a token that passes over rows (norms, rotary angles, gates) and their gradients take beside the
/// graph of a layer that is computed again. Measured, not derived: 4.3 to 6 thousand numbers at a width of
/// 384 and an inside of 1,536 (docs/log.md).
fn of_passes(shape: &DecoderConfig) -> u64 {
    F32 * (4 * shape.hidden_size as u64 + 2 * shape.intermediate_size as u64)
}

/// The graphs of one micro-batch.
struct Graph {
    name: &'static str,
    kept: u64,
    passing_name: &'static str,
    passing: u64,
}

impl Graph {
    fn of(
        shape: &DecoderConfig,
        config: &TrainConfig,
        lora: Option<&LoraShape>,
        streamed: bool,
        sizes: &Sizes,
    ) -> Self {
        let (precision, activations) = (config.precision, sizes.activations);
        let of_token = shape.training_bytes_per_token(activations, lora);
        let (tokens, layers) = (sizes.tokens, shape.num_hidden_layers as u64);
        let by_layer = streamed || config.checkpointing == Checkpointing::Layer;
        let units = uses_matrix_units();
        let wide = |bytes: u64| if precision == Precision::F32 { 0 } else { WIDE_BYTES.min(bytes) };
        let dense = if config.quantise.is_some() { shape.largest_matrix_bytes(activations) } else { 0 };
        let (layout, scores) = sizes.layout(Order::of(config).arrangement());
        let of_layer = (tokens * of_token.passing).max(of_token.scores * scores);
        let of_layer = of_layer + dense.max(wide(shape.largest_matrix_bytes(Precision::F32)));

        let (vocabulary, width) = (shape.vocab_size as u64, shape.embedding_size as u64);
        let rows = tokens.min(config.rows_per_chunk as u64);
        let states = 3 * F32 * tokens * width;
        let loss = &config.loss;
        let events = loss.tail == Tail::Uniform && loss.divergence != Divergence::ForwardKl;
        let logits = LOGITS + if events { LOGITS_OF_EVENTS } else { 0 };
        let head = logits * F32 * rows * vocabulary + states;
        let head = head + wide(F32 * vocabulary * width);
        let head = if lora.is_none() { head + 3 * F32 * vocabulary * width } else { head };

        let masks = if units { 0 } else { shape.mask_bytes(&layout) };
        let (name, kept, of_layer) = if by_layer {
            let graph = tokens * (of_token.kept + of_passes(shape));
            ("inputs of all layers", tokens * of_token.input * (layers + 1) + masks, of_layer + graph)
        } else {
            ("graph of all layers", tokens * of_token.kept * layers + masks, of_layer)
        };
        let (passing_name, passing) =
            if head > of_layer { ("chunk of the head", head) } else { ("gradient of a layer", of_layer) };
        Self { name, kept, passing_name, passing }
    }
}
