//! Writes labels of a teacher of your own: `cargo run --example write FOLDER`.
//!
//! Run it again after a crash, or beside itself: it goes on with the shards that are missing, and the files are the same.

use std::collections::BTreeMap;

use softshard_labels::{LabelPlan, LabelWriter, Selection, SequenceLabels, TeacherIdentity, Tokenizer};

const VOCABULARY: u32 = 64;
const KEPT: u32 = 8;
const SEQUENCES: u64 = 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args().nth(1).ok_or("usage: write FOLDER")?;
    let plan = plan();
    let writer = LabelWriter::create_or_resume(&folder, plan.clone())?;
    for index in writer.missing()? {
        let mut shard = writer.shard(index)?;
        let [start, end] = plan.shards[index];
        for row in start..end {
            shard.push(label(row)?)?;
        }
        shard.commit()?;
    }
    let manifest = writer.finish()?;
    println!("{} sequences, {} labelled tokens: {folder}", manifest.rows, manifest.labelled_tokens);
    Ok(())
}

/// All that the labels depend on. Hashes say which tokenizer, inputs and teacher these were; a student compares them.
fn plan() -> LabelPlan {
    let hash = |of: &str| blake3::hash(of.as_bytes()).to_hex().to_string();
    LabelPlan {
        format: LabelPlan::FORMAT.to_owned(),
        version: LabelPlan::VERSION,
        sequences: hash("the inputs"),
        shards: LabelPlan::ranges(SEQUENCES, 8),
        split: "train".to_owned(),
        tokenizer: Tokenizer {
            vocabulary_blake3: hash("the vocabulary"),
            vocab_size: VOCABULARY,
            special_ids: BTreeMap::from([("eos".to_owned(), 0)]),
            normalizer_blake3: hash("the normaliser"),
            chat_template_blake3: None,
            merges_blake3: None,
        },
        template: "none".to_owned(),
        teacher: TeacherIdentity {
            config_blake3: hash("the configuration"),
            weights_blake3: hash("the weights"),
            adapter_blake3: None,
            dtype: "f64".to_owned(),
            vocab_size: VOCABULARY,
            altered: None,
        },
        selection: Selection::TopK { k: KEPT },
        mantissa_bits: LabelPlan::DEFAULT_MANTISSA_BITS,
        position_mantissa_bits: LabelPlan::DEFAULT_POSITION_MANTISSA_BITS,
        omit: Vec::new(),
        temperatures: Vec::new(),
        seed: 0,
        row_group_tokens: LabelPlan::DEFAULT_ROW_GROUP_TOKENS,
    }
}

/// Stands for your model: the logits of the token at `position`, given the tokens before it.
fn logits(input_ids: &[i32], position: usize) -> Vec<f64> {
    let before = f64::from(input_ids[position - 1]);
    (0..VOCABULARY).map(|id| 4.0 * (0.37 * (before + 1.0) * f64::from(id)).sin()).collect()
}

/// Labels of a sequence: its first four tokens are the prompt, the other ones are labelled.
fn label(row: u64) -> Result<SequenceLabels, std::num::TryFromIntError> {
    let row = i32::try_from(row)?;
    let mut labels = SequenceLabels {
        source: Some(format!("example {row}")),
        input_ids: (0..12).map(|place| (row + place * place) % 64).collect(),
        positions: (4..12).collect(),
        ..SequenceLabels::default()
    };
    for position in 4..12 {
        let gold = usize::try_from(labels.input_ids[position])?;
        let logits = logits(&labels.input_ids, position);
        push(&mut labels, &logits, gold);
    }
    Ok(labels)
}

/// One position. The sums run over the whole vocabulary, in f64: only the entries that are kept become f32.
#[expect(clippy::cast_possible_truncation, reason = "labels are f32")]
fn push(labels: &mut SequenceLabels, logits: &[f64], gold: usize) {
    let log_sum_exp = logits.iter().map(|logit| logit.exp()).sum::<f64>().ln();
    let mut entries: Vec<(i32, f64)> =
        (0..).zip(logits).map(|(id, logit)| (id, logit - log_sum_exp)).collect();
    let mass = |entries: &[(i32, f64)]| entries.iter().map(|(_, log_prob)| log_prob.exp()).sum::<f64>();
    let entropy = -entries.iter().map(|(_, log_prob)| log_prob.exp() * log_prob).sum::<f64>();
    let gold_log_prob = entries[gold].1;
    entries.sort_by(|one, other| other.1.total_cmp(&one.1).then(one.0.cmp(&other.0)));
    let kept = KEPT as usize;
    labels.counts.push(KEPT as i32);
    labels.token_ids.extend(entries[..kept].iter().map(|(id, _)| id));
    labels.log_probs.extend(entries[..kept].iter().map(|(_, log_prob)| *log_prob as f32));
    labels.tail_log_mass.push(mass(&entries[kept..]).ln() as f32);
    labels.log_sum_exp.push(log_sum_exp as f32);
    labels.entropy.push(entropy as f32);
    labels.gold_log_prob.push(gold_log_prob as f32);
}
