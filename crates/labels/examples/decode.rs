//! Speed and size of the label format on a made-up top-64 dataset: `cargo run --release --example decode [TOKENS]`.
//!
//! Decoding and random reads are the best of some passes over a warm map, beside a copy of as many bytes. Prints one
//! line of JSON. With fewer than 65,000 tokens there are too few row groups to read rows alone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use softshard_labels::{
    LabelDataset, LabelGroup, LabelPlan, LabelWriter, Selection, SequenceLabels, TeacherIdentity, Tokenizer,
};

const VOCABULARY: u32 = 128_256;
const KEPT: u32 = 64;
const PASSES: u32 = 8;
const RANDOM_READS: usize = 100;
const SEQUENCE_TOKENS: u32 = 160;
/// The first quarter is the prompt.
const PROMPT_TOKENS: u32 = 40;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let tokens: u32 = std::env::args().nth(1).map_or(Ok(200_000), |text| text.parse())?;
    let rows = u64::from(tokens / (SEQUENCE_TOKENS - PROMPT_TOKENS)).max(1);
    let labels: Vec<SequenceLabels> = (0..rows).map(|row| made_up(&mut Random(row))).collect();
    let labelled: usize = labels.iter().map(|labels| labels.positions.len()).sum();
    let labelled = f64::from(u32::try_from(labelled)?);

    let dir = std::env::temp_dir().join(format!("softshard-decode-{}", std::process::id()));
    let started = Instant::now();
    let writer = LabelWriter::create_or_resume(&dir, plan(rows))?;
    let mut shard = writer.shard(0)?;
    for labels in labels {
        shard.push(labels)?;
    }
    let encode_seconds = started.elapsed().as_secs_f64();
    shard.commit()?;
    let manifest = writer.finish()?;
    let write_seconds = started.elapsed().as_secs_f64();

    let started = Instant::now();
    let dataset = LabelDataset::open(&dir)?;
    let open_seconds = started.elapsed().as_secs_f64();
    let mut entries = 0.0;
    for labels in dataset.iter() {
        entries += f64::from(u32::try_from(labels?.token_ids.len())?);
    }
    assert_eq!(entries, labelled * f64::from(KEPT));

    let bytes = f64::from(u32::try_from(manifest.shards[0].bytes)?);
    let mut report = BTreeMap::from([
        ("bytes_per_token", bytes / labelled),
        ("encode_tokens_per_second", labelled / encode_seconds),
        ("labelled_tokens", labelled),
        ("open_milliseconds", open_seconds * 1e3),
        ("write_and_verify_tokens_per_second", labelled / write_seconds),
    ]);
    measure(&dataset, labelled, &mut report)?;
    println!("{}", serde_json::to_string(&report)?);
    std::fs::remove_dir_all(dir)?;
    Ok(())
}

/// Reads the dataset in the ways there are; the best of [`PASSES`], as other programs use the machine as well.
fn measure(
    dataset: &LabelDataset,
    labelled: f64,
    report: &mut BTreeMap<&str, f64>,
) -> Result<(), Box<dyn std::error::Error>> {
    let (cpu, wall) = best(|| decode_groups(dataset, 0, 1))?;
    report.insert("decode_tokens_per_cpu_second", labelled / cpu);
    report.insert("decode_tokens_per_second", labelled / wall);
    let mut cpu = 0.0;
    let (_, wall) = best(|| {
        cpu += decode_on_two_threads(dataset)? / f64::from(PASSES);
        Ok(())
    })?;
    report.insert("decode_tokens_per_cpu_second_two_threads", labelled / cpu);
    report.insert("decode_tokens_per_second_two_threads", labelled / wall);
    let (cpu, _) = best(|| Ok(dataset.iter().try_for_each(|labels| labels.map(drop))?))?;
    report.insert("iter_tokens_per_cpu_second", labelled / cpu);

    let values = vec![1u8; 8 << 20];
    let mut copy = vec![0u8; 8 << 20];
    let (cpu, _) = best(|| {
        // What decoding gives of a token: two words for each entry, and seven for the position.
        let mut left = labelled * f64::from(8 * KEPT + 28);
        while left > 0.0 {
            copy.copy_from_slice(&values);
            std::hint::black_box(&mut copy);
            left -= f64::from(u32::try_from(copy.len())?);
        }
        Ok(())
    })?;
    report.insert("memcpy_tokens_per_cpu_second", labelled / cpu);

    // Rows far from each other, so that each one is read alone.
    let mut rows = Vec::new();
    for step in 0..RANDOM_READS {
        let rows_of = dataset.group_rows((step * 7) % dataset.groups());
        rows.push(rows_of.start + (step * 31) % rows_of.len());
    }
    let reads = f64::from(u32::try_from(rows.len())?);
    let (cpu, wall) = best(|| Ok(rows.iter().try_for_each(|row| dataset.read(*row).map(drop))?))?;
    report.insert("random_read_cpu_milliseconds", cpu * 1e3 / reads);
    report.insert("random_read_milliseconds", wall * 1e3 / reads);
    report.insert("resident_megabytes", resident_megabytes());
    Ok(())
}

/// Decodes every `step`th row group into one buffer.
fn decode_groups(
    dataset: &LabelDataset,
    first: usize,
    step: usize,
) -> Result<(), Box<dyn std::error::Error>> {
    let mut group = LabelGroup::default();
    for index in (first..dataset.groups()).step_by(step) {
        dataset.decode_group(index, &mut group)?;
        std::hint::black_box(&group);
    }
    Ok(())
}

/// Two threads with every second row group each; gives the CPU seconds of both together.
fn decode_on_two_threads(dataset: &LabelDataset) -> Result<f64, Box<dyn std::error::Error>> {
    let work = |first| {
        let cpu = cpu_seconds();
        decode_groups(dataset, first, 2).map_err(|error| error.to_string())?;
        Ok::<f64, String>(cpu_seconds() - cpu)
    };
    let spent = std::thread::scope(|scope| {
        let workers = [0, 1].map(|first| scope.spawn(move || work(first)));
        workers.map(|worker| worker.join().expect("decoding does not panic"))
    });
    let [one, other] = spent;
    Ok(one? + other?)
}

/// Mean seconds of CPU time of this thread (its clock is read in steps of the scheduler), fewest of a clock on the wall.
fn best(
    mut work: impl FnMut() -> Result<(), Box<dyn std::error::Error>>,
) -> Result<(f64, f64), Box<dyn std::error::Error>> {
    let mut seconds = (0.0, f64::INFINITY);
    for _ in 0..PASSES {
        let (cpu, wall) = (cpu_seconds(), Instant::now());
        work()?;
        seconds = (
            seconds.0 + (cpu_seconds() - cpu) / f64::from(PASSES),
            seconds.1.min(wall.elapsed().as_secs_f64()),
        );
    }
    Ok(seconds)
}

/// Of this thread, from the scheduler.
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|nanoseconds| nanoseconds.parse().ok()).unwrap_or(f64::NAN) / 1e9
}

/// Memory of this process that is no file: the index, the cached row groups, and what making the labels left.
fn resident_megabytes() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let anonymous = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap_or_default();
    anonymous.trim().trim_end_matches(" kB").parse().unwrap_or(f64::NAN) / 1e3
}

fn plan(rows: u64) -> LabelPlan {
    let none = "0".repeat(64);
    LabelPlan {
        format: LabelPlan::FORMAT.to_owned(),
        version: LabelPlan::VERSION,
        sequences: none.clone(),
        shards: vec![[0, rows]],
        split: "train".to_owned(),
        tokenizer: Tokenizer {
            vocabulary_blake3: none.clone(),
            vocab_size: VOCABULARY,
            special_ids: BTreeMap::new(),
            normalizer_blake3: none.clone(),
            chat_template_blake3: None,
        },
        template: "none".to_owned(),
        teacher: TeacherIdentity {
            config_blake3: none.clone(),
            weights_blake3: none,
            adapter_blake3: None,
            dtype: "f32".to_owned(),
            vocab_size: VOCABULARY,
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

/// SplitMix64 (Steele et al. 2014).
struct Random(u64);

impl Random {
    /// In 0..1.
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        f64::from(u32::try_from((z ^ (z >> 31)) >> 32).expect("32 bits")) / 4_294_967_296.0
    }

    /// Ids come by Zipf's law, roughly: log-uniform over the vocabulary.
    #[expect(clippy::cast_possible_truncation, reason = "below the vocabulary size")]
    fn id(&mut self) -> i32 {
        (f64::from(VOCABULARY).powf(self.unit()) - 1.0) as i32
    }
}

/// Labels whose probabilities fall by a power of the rank, with noise, and add up to 0.93.
#[expect(clippy::cast_possible_truncation, reason = "labels are f32")]
fn made_up(random: &mut Random) -> SequenceLabels {
    const KEPT_MASS: f64 = 0.93;
    let input_ids: Vec<i32> = (0..SEQUENCE_TOKENS).map(|_| random.id()).collect();
    let positions: Vec<i32> = (PROMPT_TOKENS..SEQUENCE_TOKENS).map(u32::cast_signed).collect();
    let (mut token_ids, mut log_probs, mut gold_log_prob) = (Vec::new(), Vec::new(), Vec::new());
    for gold in &input_ids[40..] {
        let slope = 0.5 + 2.0 * random.unit();
        let mut weights: Vec<f64> =
            (1..=KEPT).map(|rank| (random.unit() - slope * f64::from(rank).ln()).exp()).collect();
        weights.sort_by(|a, b| b.total_cmp(a));
        let total: f64 = weights.iter().sum();
        let kept: Vec<f32> = weights.iter().map(|weight| (KEPT_MASS * weight / total).ln() as f32).collect();
        let mut ids = Vec::new();
        let mut seen = BTreeSet::from([*gold]);
        while ids.len() < kept.len() {
            let id = random.id();
            if seen.insert(id) {
                ids.push(id);
            }
        }
        gold_log_prob.push(kept[kept.len() - 1] - random.unit() as f32);
        token_ids.extend(ids);
        log_probs.extend(kept);
    }
    let mut floats = |low: f64, high: f64| -> Vec<f32> {
        positions.iter().map(|_| (low + (high - low) * random.unit()) as f32).collect()
    };
    SequenceLabels {
        source: None,
        counts: vec![KEPT.cast_signed(); positions.len()],
        log_sum_exp: floats(10.0, 30.0),
        tail_log_mass: vec![(1.0 - KEPT_MASS).ln() as f32; positions.len()],
        entropy: floats(0.5, 4.0),
        input_ids,
        positions,
        token_ids,
        log_probs,
        gold_log_prob,
        log_partitions: Vec::new(),
        sample_counts: Vec::new(),
    }
}
