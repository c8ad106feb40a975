//! Labels of a made-up teacher: a softmax over seeded logits.

use std::collections::BTreeMap;
use std::path::Path;

use softshard_labels::{
    Commit, LabelPlan, LabelWriter, LabelsManifest, OptionalColumn, Selection, Sequence, SequenceLabels,
    SequencesInfo, TeacherIdentity, Tokenizer,
};

pub(crate) const VOCABULARY: u32 = 97;
pub(crate) const TOP_4: Selection = Selection::TopK { k: 4 };

/// SplitMix64 (Steele et al. 2014): seeded, without a dependency.
#[derive(Clone, Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(end).unwrap()).unwrap()
    }

    /// In 0..1.
    pub(crate) fn unit(&mut self) -> f64 {
        f64::from(u32::try_from(self.next() >> 32).unwrap()) / 4_294_967_296.0
    }
}

pub(crate) fn tokenizer() -> Tokenizer {
    Tokenizer {
        vocabulary_blake3: "11".repeat(32),
        vocab_size: VOCABULARY,
        special_ids: BTreeMap::from([("eos".to_owned(), 2)]),
        normalizer_blake3: "22".repeat(32),
        chat_template_blake3: None,
        merges_blake3: None,
    }
}

pub(crate) fn info() -> SequencesInfo {
    SequencesInfo {
        tokenizer: tokenizer(),
        template: "alpaca".to_owned(),
        split: "train".to_owned(),
        seed: 7,
    }
}

pub(crate) fn plan(shards: Vec<[u64; 2]>, selection: Selection) -> LabelPlan {
    LabelPlan {
        format: LabelPlan::FORMAT.to_owned(),
        version: LabelPlan::VERSION,
        sequences: "33".repeat(32),
        shards,
        split: "train".to_owned(),
        tokenizer: tokenizer(),
        template: "alpaca".to_owned(),
        teacher: TeacherIdentity {
            config_blake3: "44".repeat(32),
            weights_blake3: "55".repeat(32),
            adapter_blake3: None,
            dtype: "f32".to_owned(),
            vocab_size: VOCABULARY,
            altered: None,
        },
        selection,
        mantissa_bits: 10,
        position_mantissa_bits: LabelPlan::DEFAULT_POSITION_MANTISSA_BITS,
        omit: Vec::new(),
        temperatures: Vec::new(),
        seed: 7,
        row_group_tokens: 64,
    }
}

/// The plan with extra temperatures, of the newest version that they have.
pub(crate) fn tempered(plan: LabelPlan, temperatures: &[f32]) -> LabelPlan {
    let version = LabelPlan::version_of(&plan.selection, temperatures);
    LabelPlan { version, temperatures: temperatures.to_vec(), ..plan }
}

pub(crate) fn sequence(random: &mut Random, vocabulary: u32) -> Sequence {
    let length = 2 + random.below(40);
    let mut id = || i32::try_from(random.below(usize::try_from(vocabulary).unwrap())).unwrap();
    let input_ids: Vec<i32> = (0..length).map(|_| id()).collect();
    let first = 1 + random.below(length - 1);
    let positions = (first..length).map(|position| i32::try_from(position).unwrap()).collect();
    let source = (random.below(4) > 0).then(|| format!("example {}", random.below(1000)));
    Sequence { source, input_ids, positions }
}

/// No labels, with as many columns as the plan's have.
pub(crate) fn empty(plan: &LabelPlan) -> SequenceLabels {
    SequenceLabels {
        log_partitions: vec![Vec::new(); plan.temperatures.len()],
        tail_log_masses: vec![Vec::new(); plan.tail_columns().len()],
        ..SequenceLabels::default()
    }
}

/// What the made-up teacher says about a sequence: the seed is part of the teacher.
pub(crate) fn labels(random: &mut Random, plan: &LabelPlan) -> SequenceLabels {
    let vocabulary = plan.teacher.vocab_size;
    let Sequence { source, input_ids, positions } =
        sequence(random, plan.tokenizer.vocab_size.min(vocabulary));
    let mut labels = SequenceLabels { source, input_ids, positions, ..empty(plan) };
    for index in 0..labels.positions.len() {
        let gold = labels.input_ids[usize::try_from(labels.positions[index]).unwrap()];
        let logits: Vec<f64> = (0..vocabulary).map(|_| (random.unit() * 1e-9).ln() * -0.4).collect();
        push_position(&mut labels, plan, &logits, gold);
    }
    leave_out(&mut labels, plan);
    labels
}

/// Empties the columns that the plan omits.
pub(crate) fn leave_out(labels: &mut SequenceLabels, plan: &LabelPlan) {
    for column in &plan.omit {
        match column {
            OptionalColumn::LogSumExp => labels.log_sum_exp.clear(),
            OptionalColumn::Entropy => labels.entropy.clear(),
            OptionalColumn::GoldLogProb => labels.gold_log_prob.clear(),
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "labels are f32")]
pub(crate) fn push_position(labels: &mut SequenceLabels, plan: &LabelPlan, logits: &[f64], gold: i32) {
    let log_sum_exp = |temperature: f64| logits.iter().map(|z| (z / temperature).exp()).sum::<f64>().ln();
    let partition = log_sum_exp(1.0);
    let mut entries: Vec<(f64, i32)> = (0..).zip(logits).map(|(id, z)| (z - partition, id)).collect();
    let entropy: f64 = entries.iter().map(|(log_prob, _)| -log_prob.exp() * log_prob).sum();
    labels.gold_log_prob.push(entries[usize::try_from(gold).unwrap()].0.min(0.0) as f32);
    entries.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let kept = match plan.selection {
        Selection::TopK { k } => usize::try_from(k).unwrap().min(entries.len()),
        Selection::TopP { p, k } => {
            let mut mass = 0.0;
            let reach = entries.iter().position(|(log_prob, _)| {
                mass += log_prob.exp();
                mass >= p
            });
            reach.map_or(entries.len(), |index| index + 1).min(usize::try_from(k).unwrap())
        }
        Selection::Sampled { .. } => 0,
        Selection::TopKSampled { k, .. } => usize::try_from(k).unwrap(),
    };
    let drawn = plan.selection.draws().map_or(Vec::new(), |draws| draw(&entries[kept..], draws));
    let rest = if kept == 0 { entries.len() - drawn.len() } else { entries.len() - kept };
    let drawn_ids: Vec<i32> = drawn.iter().map(|(_, id)| *id).collect();
    let left = |id: &i32| kept > 0 || !drawn_ids.contains(id);
    let tail = entries[kept..].iter().filter(|(_, id)| left(id)).map(|(log_prob, _)| log_prob.exp());
    let tail: f64 = if rest == 0 { 0.0 } else { tail.sum() };
    labels.counts.push(i32::try_from(kept + drawn.len()).unwrap());
    labels.token_ids.extend(entries[..kept].iter().map(|(_, id)| id));
    labels.token_ids.extend(drawn_ids);
    labels.sample_counts.extend(drawn.iter().map(|(count, _)| count));
    labels.log_probs.extend(entries[..kept].iter().map(|(log_prob, _)| log_prob.min(0.0) as f32));
    labels.log_sum_exp.push(partition as f32);
    labels.tail_log_mass.push(tail.ln() as f32);
    labels.entropy.push(entropy.max(0.0) as f32);
    for (temperature, column) in plan.temperatures.iter().zip(&mut labels.log_partitions) {
        column.push(log_sum_exp(f64::from(*temperature)) as f32);
    }
    for (temperature, column) in plan.temperatures.iter().zip(&mut labels.tail_log_masses) {
        let (temperature, all) = (f64::from(*temperature), log_sum_exp(f64::from(*temperature)));
        let logit = |id: i32| logits[usize::try_from(id).unwrap()];
        let beyond: f64 = entries[kept..].iter().map(|&(_, id)| (logit(id) / temperature - all).exp()).sum();
        column.push(beyond.ln().min(0.0) as f32);
    }
}

/// Counts and ids of evenly spaced draws, as labels have them.
fn draw(entries: &[(f64, i32)], draws: u32) -> Vec<(i32, i32)> {
    let mass: f64 = entries.iter().map(|(log_prob, _)| log_prob.exp()).sum();
    let (mut drawn, mut next, mut before) = (Vec::new(), 0, 0.0);
    if mass == 0.0 {
        return drawn;
    }
    for (index, (log_prob, id)) in entries.iter().enumerate() {
        before += log_prob.exp();
        let mut count = 0;
        while next < draws
            && ((f64::from(next) + 0.5) / f64::from(draws) * mass < before || index + 1 == entries.len())
        {
            (count, next) = (count + 1, next + 1);
        }
        if count > 0 {
            drawn.push((count, *id));
        }
    }
    drawn.sort_by_key(|(count, id)| (-count, *id));
    drawn
}

/// Labels of every sequence of a shard, always the same.
pub(crate) fn shard_labels(plan: &LabelPlan, shard: usize) -> Vec<SequenceLabels> {
    let [start, end] = plan.shards[shard];
    (start..end).map(|row| labels(&mut Random(row), plan)).collect()
}

pub(crate) fn write_shard(writer: &LabelWriter, shard: usize) -> Commit {
    let mut file = writer.shard(shard).unwrap();
    for labels in shard_labels(writer.plan(), shard) {
        file.push(labels).unwrap();
    }
    file.commit().unwrap()
}

/// Writes all that is missing and finishes.
pub(crate) fn write_dataset(dir: &Path, plan: &LabelPlan) -> LabelsManifest {
    let writer = LabelWriter::create_or_resume(dir, plan.clone()).unwrap();
    for shard in writer.missing().unwrap() {
        write_shard(&writer, shard);
    }
    writer.finish().unwrap()
}

/// All files of a folder by relative path; the attempt of a commit is taken out.
pub(crate) fn tree(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    fn walk(root: &Path, dir: &Path, files: &mut BTreeMap<String, Vec<u8>>) {
        for entry in fs_err::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(root, &path, files);
            } else {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                let bytes = fs_err::read(&path).unwrap();
                let bytes = if name.contains("commits") { without_attempt(&bytes) } else { bytes };
                files.insert(name, bytes);
            }
        }
    }
    let mut files = BTreeMap::new();
    walk(dir, dir, &mut files);
    files
}

fn without_attempt(commit: &[u8]) -> Vec<u8> {
    let text = std::str::from_utf8(commit).unwrap();
    text.lines()
        .filter(|line| !line.contains("\"attempt\""))
        .flat_map(|line| line.bytes().chain([b'\n']))
        .collect()
}
