//! What each selection costs and what it gives: bytes of a labelled token in a shard, and the angle between a student's
//! gradient from those labels and the one from the full distribution.
//!
//! `selections [--plot FILE] [MODEL SEQUENCES]` prints a table for a made-up teacher of 128,256 tokens or, with a
//! model and sequences of its tokenizer, for that model.
//!
//! The gradient is that of the divergence alone, by all trained parameters, summed over the labelled tokens of a step.
//! "renormalised" is how top-k labels are used where nothing is known of the rest: kept tokens divided by their sum.

mod made_up;
mod plot;
mod real;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use softshard_labels::{LabelPlan, LabelWriter, Selection, SequenceLabels, TeacherIdentity, Tokenizer};
use softshard_losses::{DistillLoss, HeadLabels, Keep, Targets};

/// The divergence alone: the cross-entropy weighs 1e-6 of it.
fn divergence() -> DistillLoss {
    DistillLoss { normalise: true, ..DistillLoss::forward_kl(1e6, 64) }
}

/// A teacher, a student that is not there yet, and sequences.
trait World {
    fn vocabulary(&self) -> usize;
    /// Number of sequences.
    fn len(&self) -> usize;
    /// Token ids; all but the first are labelled.
    fn input_ids(&self, sequence: usize) -> Vec<i32>;
    /// The teacher's labels of a sequence.
    fn labels(&self, sequence: usize, keep: Keep) -> Result<HeadLabels>;
    /// The student's gradient from targets of a sequence, flat, and Σ KL in nats.
    fn gradient(&self, sequence: usize, targets: &Targets) -> Result<(Vec<f64>, f64)>;
}

/// A way to label, and to learn from it.
struct Variant {
    family: &'static str,
    selection: Selection,
    renormalise: bool,
}

/// What was measured of a variant.
pub(crate) struct Measured {
    pub(crate) family: &'static str,
    pub(crate) name: String,
    pub(crate) bytes_per_token: f64,
    entries_per_token: f64,
    pub(crate) degrees: f64,
}

fn main() -> Result<()> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let plot = arguments.iter().position(|argument| argument == "--plot").map(|at| {
        let file = arguments.remove(at + 1);
        arguments.remove(at);
        PathBuf::from(file)
    });
    let (name, rows) = match arguments.as_slice() {
        [] => {
            let world = made_up::MadeUp::new();
            ("made up, 128,256 tokens".to_owned(), measure(&world, &variants(&[12, 25, 50, 64, 100]))?)
        }
        [model, sequences] => {
            let world = real::Real::open(Path::new(model), Path::new(sequences))?;
            let folder =
                Path::new(model).file_name().map_or_else(|| model.into(), |name| name.to_string_lossy());
            let name = format!("{folder}, {} tokens", world.vocabulary());
            (name, measure(&world, &variants(&[4, 8, 12, 25, 50]))?)
        }
        _ => bail!("usage: selections [--plot FILE] [MODEL SEQUENCES]"),
    };
    println!("**{name}**\n\n| labels | entries | bytes/token | angle to full KD |\n|---|---|---|---|");
    for row in &rows {
        let (entries, bytes) = (row.entries_per_token, row.bytes_per_token);
        println!("| {} | {entries:.1} | {bytes:.1} | {:.2}° |", row.name, row.degrees);
    }
    if let Some(file) = plot {
        std::fs::write(file, plot::draw(&name, &rows))?;
    }
    Ok(())
}

fn variants(ks: &[u32]) -> Vec<Variant> {
    let mut variants = Vec::new();
    for (family, renormalise) in [("top_k, renormalised", true), ("top_k, bucket", false)] {
        let top_k = |k: &u32| Variant { family, selection: Selection::TopK { k: *k }, renormalise };
        variants.extend(ks.iter().map(top_k));
    }
    let top_p = [0.8, 0.9, 0.95, 0.98].map(|p| Selection::TopP { p, k: 512 });
    let sampled = [12, 25, 50, 100].map(|draws| Selection::Sampled { draws });
    let hybrid = [(4, 8), (8, 8), (12, 4), (12, 8), (16, 16), (32, 16)]
        .map(|(k, draws)| Selection::TopKSampled { k, draws });
    let families = [("top_p, bucket", &top_p[..]), ("sampled", &sampled[..]), ("top_k_sampled", &hybrid[..])];
    for (family, selections) in families {
        let variant =
            |selection: &Selection| Variant { family, selection: selection.clone(), renormalise: false };
        variants.extend(selections.iter().map(variant));
    }
    variants
}

fn measure(world: &impl World, variants: &[Variant]) -> Result<Vec<Measured>> {
    let full = Keep::TopK { k: world.vocabulary() };
    let (mut exact, mut kl, mut tokens) = (Vec::new(), 0.0, 0.0);
    for sequence in 0..world.len() {
        let labels = world.labels(sequence, full)?;
        tokens += float(labels.len());
        let targets = targets(world, sequence, &labels, false);
        let (gradient, nats) = world.gradient(sequence, &targets)?;
        kl += nats;
        add(&mut exact, &gradient);
    }
    eprintln!(
        "{} sequences, {tokens} labelled tokens, KL(teacher ‖ student) {:.3} nats",
        world.len(),
        kl / tokens
    );
    let mut rows = Vec::new();
    for variant in variants {
        let row = measure_variant(world, variant, &exact).context(format!("{:?}", variant.selection))?;
        eprintln!("{} {:.1} bytes {:.2} degrees", row.name, row.bytes_per_token, row.degrees);
        rows.push(row);
    }
    Ok(rows)
}

fn measure_variant(world: &impl World, variant: &Variant, exact: &[f64]) -> Result<Measured> {
    let (mut gradient, mut entries, mut tokens) = (Vec::new(), 0.0, 0.0);
    let folder = std::env::temp_dir().join(format!("softshard-selections-{}", std::process::id()));
    let plan = plan(world, variant.selection.clone());
    let writer = LabelWriter::create_or_resume(&folder, plan)?;
    let mut shard = writer.shard(0)?;
    for sequence in 0..world.len() {
        let labels = world.labels(sequence, keep(&variant.selection)?)?;
        entries += float(labels.token_ids.len());
        tokens += float(labels.len());
        let targets = targets(world, sequence, &labels, variant.renormalise);
        add(&mut gradient, &world.gradient(sequence, &targets)?.0);
        shard.push(stored(world.input_ids(sequence), labels))?;
    }
    shard.commit()?;
    let bytes = writer.finish()?.shards[0].bytes;
    std::fs::remove_dir_all(folder)?;
    Ok(Measured {
        family: variant.family,
        name: name(variant),
        bytes_per_token: float(usize::try_from(bytes)?) / tokens,
        entries_per_token: entries / tokens,
        degrees: angle(exact, &gradient),
    })
}

fn name(variant: &Variant) -> String {
    match &variant.selection {
        selection @ Selection::TopK { .. } if variant.renormalise => format!("{selection}, renormalised"),
        selection @ Selection::TopK { .. } => format!("{selection}, bucket"),
        selection => selection.to_string(),
    }
}

fn keep(selection: &Selection) -> Result<Keep> {
    Ok(match *selection {
        Selection::TopK { k } => Keep::TopK { k: usize::try_from(k)? },
        Selection::TopP { p, k } => Keep::TopP { p, k: usize::try_from(k)? },
        Selection::Sampled { draws } => Keep::Sampled { draws },
        Selection::TopKSampled { k, draws } => Keep::TopKSampled { k: usize::try_from(k)?, draws },
    })
}

fn targets(world: &impl World, sequence: usize, labels: &HeadLabels, renormalise: bool) -> Targets {
    let gold = world.input_ids(sequence)[1..].to_vec();
    if !renormalise {
        return Targets::of(gold, labels);
    }
    let mut certain = labels.clone();
    let mut rest = certain.log_probs.as_mut_slice();
    for &count in &labels.counts {
        let (row, after) = rest.split_at_mut(usize::try_from(count).expect("counts are not negative"));
        let sum: f32 = row.iter().map(|log_prob| log_prob.exp()).sum();
        row.iter_mut().for_each(|log_prob| *log_prob -= sum.ln());
        rest = after;
    }
    certain.tail_log_mass.fill(f32::NEG_INFINITY);
    Targets::of(gold, &certain)
}

fn stored(input_ids: Vec<i32>, labels: HeadLabels) -> SequenceLabels {
    SequenceLabels {
        source: None,
        positions: (1..).take(labels.len()).collect(),
        input_ids,
        counts: labels.counts,
        token_ids: labels.token_ids,
        log_probs: labels.log_probs,
        sample_counts: labels.sample_counts,
        log_sum_exp: labels.log_sum_exp,
        tail_log_mass: labels.tail_log_mass,
        entropy: labels.entropy,
        gold_log_prob: labels.gold_log_prob,
        log_partitions: Vec::new(),
        tail_log_masses: Vec::new(),
    }
}

fn plan(world: &impl World, selection: Selection) -> LabelPlan {
    let none = "0".repeat(64);
    let vocabulary = u32::try_from(world.vocabulary()).expect("a vocabulary fits 32 bits");
    LabelPlan {
        format: LabelPlan::FORMAT.to_owned(),
        version: LabelPlan::VERSION,
        sequences: none.clone(),
        shards: vec![[0, u64::try_from(world.len()).expect("a length fits 64 bits")]],
        split: "train".to_owned(),
        tokenizer: Tokenizer {
            vocabulary_blake3: none.clone(),
            vocab_size: vocabulary,
            special_ids: Default::default(),
            normalizer_blake3: none.clone(),
            chat_template_blake3: None,
            merges_blake3: None,
        },
        template: "none".to_owned(),
        teacher: TeacherIdentity {
            config_blake3: none.clone(),
            weights_blake3: none,
            adapter_blake3: None,
            dtype: "f32".to_owned(),
            vocab_size: vocabulary,
            altered: None,
        },
        selection,
        mantissa_bits: LabelPlan::DEFAULT_MANTISSA_BITS,
        position_mantissa_bits: LabelPlan::DEFAULT_POSITION_MANTISSA_BITS,
        omit: Vec::new(),
        temperatures: Vec::new(),
        seed: 0,
        row_group_tokens: LabelPlan::DEFAULT_ROW_GROUP_TOKENS,
    }
}

fn add(sum: &mut Vec<f64>, gradient: &[f64]) {
    sum.resize(gradient.len(), 0.0);
    sum.iter_mut().zip(gradient).for_each(|(sum, value)| *sum += value);
}

/// Degrees between two gradients.
fn angle(one: &[f64], other: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let cosine = dot(one, other) / (dot(one, one) * dot(other, other)).sqrt();
    cosine.clamp(-1.0, 1.0).acos().to_degrees()
}

/// SplitMix64 (Steele et al. 2014).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// In 0..1.
    pub(crate) fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Standard normal, by Box and Muller.
    pub(crate) fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }
}

fn float(count: usize) -> f64 {
    count as f64
}
