//! Speed and size of the label format; tests/peers/bench_labels.py puts peers beside it.
//!
//! - `bench_labels make OUT TOKENS SELECTION BITS` labels made-up sequences, `SELECTION` as JSON: `{"kind":"top_k","k":64}`
//! - `bench_labels rewrite FROM OUT SELECTION BITS [TIMES]` writes a dataset of exact top-k labels in another way
//! - `bench_labels measure DATASET` reads it in the ways there are
//! - `bench_labels open DATASET` opens it and reads it twice in a random order, and says what that takes and holds
//! - `bench_labels export DATASET OUT` writes its columns as raw arrays
//!
//! Each prints a line of JSON. Times are CPU seconds of the threads that worked, where other programs disturb least.

mod common;

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::time::Instant;

use common::made_up::{self, LABELLED_TOKENS, MadeUpTeacher, VOCABULARY};
use softshard_labels::{
    LabelDataset, LabelGroup, LabelPlan, LabelWriter, Selection, SequenceLabels, TeacherIdentity, Tokenizer,
};

const PASSES: u32 = 8;
/// Passes go on until they took this long.
const SECONDS: f64 = 1.0;
const RANDOM_READS: usize = 200;
const USAGE: &str = "make OUT TOKENS SELECTION BITS | rewrite FROM OUT SELECTION BITS [TIMES] | measure DATASET | \
                     open DATASET | export DATASET OUT";

type Report = BTreeMap<&'static str, f64>;
type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let report = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["make", out, tokens, selection, bits] => {
            let rows = tokens.parse::<u64>()?.div_ceil(u64::from(LABELLED_TOKENS));
            let plan = plan(rows, serde_json::from_str(selection)?, bits.parse()?);
            let teacher = MadeUpTeacher::new();
            let selection = plan.selection.clone();
            write(out, plan, (0..rows).map(|row| Ok(made_up::sequence(&teacher, row, &selection))), 1)?
        }
        ["rewrite", from, out, selection, bits, ref times @ ..] => {
            let dataset = LabelDataset::open(from)?;
            let times: u32 = times.first().map_or(Ok(1), |times| times.parse())?;
            let mut plan = dataset.manifest().plan.clone();
            plan.selection = serde_json::from_str(selection)?;
            plan.mantissa_bits = bits.parse()?;
            plan.position_mantissa_bits = position_bits(plan.mantissa_bits);
            let rows = u64::try_from(dataset.len())?;
            plan.shards = (0..u64::from(times)).map(|time| [time * rows, (time + 1) * rows]).collect();
            let selection = plan.selection.clone();
            write(out, plan, dataset.iter().map(|labels| Ok(narrowed(labels?, &selection))), times)?
        }
        ["measure", dataset] => measure(&LabelDataset::open(dataset)?)?,
        ["open", dataset] => open(Path::new(dataset))?,
        ["export", dataset, out] => export(&LabelDataset::open(dataset)?, Path::new(out))?,
        _ => return Err(format!("expected {USAGE}").into()),
    };
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

/// Writes the rows into each of the plan's shards.
fn write(
    out: &str,
    plan: LabelPlan,
    rows: impl Iterator<Item = Outcome<SequenceLabels>>,
    times: u32,
) -> Outcome<Report> {
    let rows = rows.collect::<Outcome<Vec<_>>>()?;
    let labelled: usize = rows.iter().map(|labels| labels.positions.len()).sum();
    let labelled = f64::from(u32::try_from(labelled)?) * f64::from(times);
    let writer = LabelWriter::create_or_resume(out, plan)?;
    let (mut encode, mut all) = ([0.0; 2], [0.0; 2]);
    let mut rest = Some(rows);
    for shard in writer.missing()? {
        let rows = if shard + 1 == usize::try_from(times)? { rest.take() } else { rest.clone() };
        let (cpu, wall) = (process_cpu_seconds(), Instant::now());
        let mut open = writer.shard(shard)?;
        for labels in rows.into_iter().flatten() {
            open.push(labels)?;
        }
        let closed = open.finish()?;
        encode = [encode[0] + process_cpu_seconds() - cpu, encode[1] + wall.elapsed().as_secs_f64()];
        closed.commit()?;
        all = [all[0] + process_cpu_seconds() - cpu, all[1] + wall.elapsed().as_secs_f64()];
    }
    writer.finish()?;
    Ok(BTreeMap::from([
        ("labelled_tokens", labelled),
        ("encode_tokens_per_cpu_second", labelled / encode[0]),
        ("encode_tokens_per_second", labelled / encode[1]),
        ("encode_and_verify_tokens_per_cpu_second", labelled / all[0]),
        ("encode_and_verify_tokens_per_second", labelled / all[1]),
    ]))
}

/// What another selection keeps of exact top-k labels.
fn narrowed(labels: SequenceLabels, selection: &Selection) -> SequenceLabels {
    let Selection::TopP { p, k } = *selection else { return labels };
    let mut narrow =
        SequenceLabels { counts: Vec::new(), token_ids: Vec::new(), log_probs: Vec::new(), ..labels.clone() };
    let mut start = 0;
    for (position, count) in labels.counts.iter().enumerate() {
        let entries = start..start + usize::try_from(*count).expect("validated");
        start = entries.end;
        let log_probs = &labels.log_probs[entries.clone()];
        let most = log_probs.len().min(usize::try_from(k).expect("fits"));
        let mut mass = 0.0;
        let reached = log_probs[..most].iter().position(|log_prob| {
            mass += f64::from(*log_prob).exp();
            mass >= p
        });
        let kept = reached.map_or(most, |last| last + 1);
        let cut: f64 = log_probs[kept..].iter().map(|log_prob| f64::from(*log_prob).exp()).sum();
        let tail = f64::from(labels.tail_log_mass[position]).exp() + cut;
        #[expect(clippy::cast_possible_truncation, reason = "labels are f32")]
        let tail = tail.ln() as f32;
        narrow.tail_log_mass[position] = tail;
        narrow.counts.push(i32::try_from(kept).expect("at most as many as before"));
        narrow.token_ids.extend_from_slice(&labels.token_ids[entries.start..entries.start + kept]);
        narrow.log_probs.extend_from_slice(&log_probs[..kept]);
    }
    narrow
}

/// Reads the dataset in the ways there are.
fn measure(dataset: &LabelDataset) -> Outcome<Report> {
    let labelled = f64::from(u32::try_from(dataset.manifest().labelled_tokens)?);
    let mut report = Report::from([("labelled_tokens", labelled)]);
    let mut sizes = 0.0;
    let mut decoded = LabelGroup::default();
    for group in 0..dataset.groups() {
        dataset.decode_group(group, &mut decoded)?;
        for row in 0..decoded.len() {
            sizes += f64::from(u32::try_from(decoded_bytes(&decoded, row))?);
        }
    }
    report.insert("anonymous_megabytes", megabytes("RssAnon:"));
    drop(decoded);
    report.extend(random_reads(dataset)?);

    let (cpu, wall) = best(|| decode_groups(dataset, 0, 1))?;
    report.insert("decode_tokens_per_cpu_second", labelled / cpu);
    report.insert("decode_tokens_per_second", labelled / wall);
    let (cpu, wall) = best(|| decode_on_two_threads(dataset))?;
    report.insert("decode_tokens_per_cpu_second_two_threads", labelled / cpu);
    report.insert("decode_tokens_per_second_two_threads", labelled / wall);

    let values = vec![1u8; 8 << 20];
    let mut copy = vec![0u8; 8 << 20];
    let (cpu, _) = best(|| {
        let mut left = sizes;
        while left > 0.0 {
            copy.copy_from_slice(&values);
            std::hint::black_box(&mut copy);
            left -= f64::from(u32::try_from(copy.len())?);
        }
        Ok(0.0)
    })?;
    report.insert("memcpy_tokens_per_cpu_second", labelled / cpu);
    Ok(report)
}

/// Time and memory of a reader as a student uses it.
fn open(dataset: &Path) -> Outcome<Report> {
    let (cpu, began) = (process_cpu_seconds(), Instant::now());
    let dataset = LabelDataset::open(dataset)?;
    let mut report = Report::from([
        ("open_seconds", began.elapsed().as_secs_f64()),
        ("open_cpu_seconds", process_cpu_seconds() - cpu),
        ("opened_anonymous_megabytes", megabytes("RssAnon:")),
        ("opened_mapped_megabytes", megabytes("RssFile:")),
        ("rows", f64::from(u32::try_from(dataset.len())?)),
        ("row_groups", f64::from(u32::try_from(dataset.groups())?)),
    ]);
    let mut order: Vec<usize> = (0..dataset.len()).collect();
    order.sort_by_key(|row| u64::try_from(*row).map_or(0, |row| row.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
    let (cpu, began, mut tokens) = (cpu_seconds(), Instant::now(), 0.0);
    for _ in 0..2 {
        for &row in &order {
            tokens += f64::from(u32::try_from(dataset.read(row)?.positions.len())?);
        }
    }
    report.insert("random_labelled_tokens_per_second", tokens / began.elapsed().as_secs_f64());
    report.insert("random_labelled_tokens_per_cpu_second", tokens / (cpu_seconds() - cpu));
    report.insert("read_anonymous_megabytes", megabytes("RssAnon:"));
    report.insert("read_mapped_megabytes", megabytes("RssFile:"));
    Ok(report)
}

/// Rows far from each other, so that each one is read alone; a fresh dataset has no row group in memory.
fn random_reads(dataset: &LabelDataset) -> Outcome<Report> {
    let mut rows = Vec::new();
    for step in 0..RANDOM_READS {
        let of_group = dataset.group_rows((step * 7) % dataset.groups());
        rows.push(of_group.start + (step * 31) % of_group.len());
    }
    let mut milliseconds: Vec<f64> = Vec::new();
    for row in rows {
        let began = Instant::now();
        drop(dataset.read(row)?);
        milliseconds.push(began.elapsed().as_secs_f64() * 1e3);
    }
    milliseconds.sort_by(f64::total_cmp);
    // With fewer row groups than the dataset remembers, rows come from whole row groups that are in memory.
    let alone = if dataset.groups() > 32 { milliseconds[RANDOM_READS / 2] } else { f64::NAN };
    Ok(Report::from([("random_read_milliseconds", alone)]))
}

/// Raw arrays, little-endian, one file for each column.
fn export(dataset: &LabelDataset, out: &Path) -> Outcome<Report> {
    std::fs::create_dir_all(out)?;
    let mut columns: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
    let mut rows = 0.0;
    for labels in dataset.iter() {
        let labels = labels?;
        let length = [i32::try_from(labels.input_ids.len())?];
        let labelled = [i32::try_from(labels.positions.len())?];
        for (name, values) in [
            ("lengths.i32", &length[..]),
            ("labelled.i32", &labelled[..]),
            ("input_ids.i32", &labels.input_ids),
            ("positions.i32", &labels.positions),
            ("counts.i32", &labels.counts),
            ("token_ids.i32", &labels.token_ids),
            ("sample_counts.i32", &labels.sample_counts),
        ] {
            columns.entry(name).or_default().extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
        for (name, values) in [
            ("log_probs.f32", &labels.log_probs[..]),
            ("tail_log_mass.f32", &labels.tail_log_mass),
            ("log_sum_exp.f32", &labels.log_sum_exp),
            ("entropy.f32", &labels.entropy),
            ("gold_log_prob.f32", &labels.gold_log_prob),
        ] {
            columns.entry(name).or_default().extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
        rows += 1.0;
    }
    for (name, bytes) in columns {
        std::fs::write(out.join(name), bytes)?;
    }
    Ok(Report::from([("rows", rows)]))
}

/// Bytes that decoding a row gives.
fn decoded_bytes(group: &LabelGroup, row: usize) -> usize {
    let row = group.row(row);
    let lists =
        [row.input_ids, row.positions, row.counts, row.token_ids, row.sample_counts].map(<[i32]>::len);
    let floats =
        [row.log_probs, row.log_sum_exp, row.tail_log_mass, row.entropy, row.gold_log_prob].map(<[f32]>::len);
    4 * (lists.iter().sum::<usize>() + floats.iter().sum::<usize>())
}

/// Decodes every `step`th row group into one buffer; gives the CPU seconds it took.
fn decode_groups(dataset: &LabelDataset, first: usize, step: usize) -> Outcome<f64> {
    let cpu = cpu_seconds();
    let mut group = LabelGroup::default();
    for index in (first..dataset.groups()).step_by(step) {
        dataset.decode_group(index, &mut group)?;
        std::hint::black_box(&group);
    }
    Ok(cpu_seconds() - cpu)
}

/// Two threads with every second row group each; gives the CPU seconds of both together.
fn decode_on_two_threads(dataset: &LabelDataset) -> Outcome<f64> {
    let work = |first| decode_groups(dataset, first, 2).map_err(|error| error.to_string());
    let spent = std::thread::scope(|scope| {
        let workers = [0, 1].map(|first| scope.spawn(move || work(first)));
        workers.map(|worker| worker.join().expect("decoding does not panic"))
    });
    let [one, other] = spent;
    Ok(one? + other?)
}

/// Mean CPU seconds that `work` says it took (their clock is read in steps of the scheduler), fewest on the wall.
fn best(mut work: impl FnMut() -> Outcome<f64>) -> Outcome<(f64, f64)> {
    let (began, mut passes, mut cpu, mut wall) = (Instant::now(), 0, 0.0, f64::INFINITY);
    while passes < PASSES || began.elapsed().as_secs_f64() < SECONDS {
        let (before, pass) = (cpu_seconds(), Instant::now());
        let said = work()?;
        wall = wall.min(pass.elapsed().as_secs_f64());
        cpu += if said > 0.0 { said } else { cpu_seconds() - before };
        passes += 1;
    }
    Ok((cpu / f64::from(passes), wall))
}

/// Of this thread, from the scheduler.
fn cpu_seconds() -> f64 {
    scheduled("/proc/thread-self/schedstat")
}

/// Of all threads there are and were.
fn process_cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = text.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: f64 = fields.skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    ticks / 100.0
}

fn scheduled(path: &str) -> f64 {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split(' ').next().and_then(|nanoseconds| nanoseconds.parse().ok()).unwrap_or(f64::NAN) / 1e9
}

/// Memory of this process: `RssAnon:` is no file, as the index and what decoding needs; `RssFile:` are pages of files.
fn megabytes(of: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let found = status.lines().find_map(|line| line.strip_prefix(of)).unwrap_or_default();
    found.trim().trim_end_matches(" kB").parse().unwrap_or(f64::NAN) / 1e3
}

/// An exact dataset is exact in all columns.
fn position_bits(bits: u32) -> u32 {
    if bits == 23 { 23 } else { LabelPlan::DEFAULT_POSITION_MANTISSA_BITS }
}

fn plan(rows: u64, selection: Selection, mantissa_bits: u32) -> LabelPlan {
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
            merges_blake3: None,
        },
        template: "none".to_owned(),
        teacher: TeacherIdentity {
            config_blake3: none.clone(),
            weights_blake3: none,
            adapter_blake3: None,
            dtype: "f32".to_owned(),
            vocab_size: VOCABULARY,
            altered: None,
        },
        selection,
        mantissa_bits,
        position_mantissa_bits: position_bits(mantissa_bits),
        omit: Vec::new(),
        temperatures: Vec::new(),
        seed: 0,
        row_group_tokens: LabelPlan::DEFAULT_ROW_GROUP_TOKENS,
    }
}
