//! What is written is what is read, by our reader and by the one of the Parquet crate.

use crate::common::{
    Random, TOP_4, VOCABULARY, labels, plan, sequence, shard_labels, tempered, tree, write_dataset,
};
use parquet::basic::{Compression, Encoding};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, RowAccessor};
use proptest::prelude::*;
use softshard_labels::{
    LabelDataset, LabelGroup, LabelPlan, LabelWriter, LabelsView, OptionalColumn, Selection, SequenceDataset,
    SequenceLabels, SequenceWriter,
};

/// Nats, at the default bits; measured 7e-6 on realistic labels.
const ROUNDING_KL: f64 = 5e-5;

/// Whether `read` is `written` but for rounding and the order of what became equal.
fn is_rounded(read: &SequenceLabels, written: &SequenceLabels, plan: &LabelPlan) -> bool {
    let near = |read: &[f32], written: &[f32], bits: u32| {
        // Half a unit in the last place.
        let rounding = if bits == 23 { 0.0 } else { 0.5f32.powi(i32::try_from(bits).unwrap() + 1) };
        let near = |(a, b): (&f32, &f32)| a == b || (a - b).abs() <= rounding * b.abs();
        read.len() == written.len() && read.iter().zip(written).all(near)
    };
    let bits = plan.position_mantissa_bits;
    let all_near = near(&read.log_probs, &written.log_probs, plan.mantissa_bits)
        && near(&read.tail_log_mass, &written.tail_log_mass, bits)
        && near(&read.entropy, &written.entropy, bits)
        && near(&read.gold_log_prob, &written.gold_log_prob, bits)
        && near(
            &read.log_sum_exp,
            &written.log_sum_exp,
            if plan.temperatures.is_empty() { bits } else { 23 },
        )
        && read.tail_log_masses.len() == written.tail_log_masses.len()
        && read.tail_log_masses.iter().zip(&written.tail_log_masses).all(|(a, b)| near(a, b, bits));
    let (mut ids, mut written_ids) = (read.token_ids.clone(), written.token_ids.clone());
    ids.sort_unstable();
    written_ids.sort_unstable();
    let rest = SequenceLabels {
        token_ids: written.token_ids.clone(),
        log_probs: written.log_probs.clone(),
        log_sum_exp: written.log_sum_exp.clone(),
        tail_log_mass: written.tail_log_mass.clone(),
        entropy: written.entropy.clone(),
        gold_log_prob: written.gold_log_prob.clone(),
        tail_log_masses: written.tail_log_masses.clone(),
        ..read.clone()
    };
    all_near && ids == written_ids && rest == *written
}

fn selections() -> impl Strategy<Value = Selection> {
    prop_oneof![
        (1u32..200).prop_map(|k| Selection::TopK { k }),
        (0.05f64..=1.0, 1u32..40).prop_map(|(p, k)| Selection::TopP { p, k }),
        (1u32..90).prop_map(|draws| Selection::Sampled { draws }),
        (1u32..97, 1u32..90).prop_map(|(k, draws)| Selection::TopKSampled { k, draws }),
    ]
}

/// Row groups stay small enough for readers, whatever is kept at a position.
#[test]
fn many_entries_per_position_make_more_row_groups() {
    const ENTRIES: u32 = 65_536;
    let dir = tempfile::tempdir().unwrap();
    let mut plan = plan(vec![[0, 3]], Selection::TopK { k: ENTRIES });
    plan.teacher.vocab_size = ENTRIES + 1;
    plan.row_group_tokens = LabelPlan::DEFAULT_ROW_GROUP_TOKENS;
    plan.omit = vec![OptionalColumn::LogSumExp, OptionalColumn::Entropy, OptionalColumn::GoldLogProb];
    // A flat teacher, and 100 positions: about 50 MiB each.
    let log_prob = -65_537f32.ln();
    let of = |first: i32| SequenceLabels {
        input_ids: (0..101).map(|index| (first + index) % 97).collect(),
        positions: (1..101).collect(),
        counts: vec![65_536; 100],
        token_ids: (0..100).flat_map(|_| 0..65_536).collect(),
        log_probs: vec![log_prob; 100 * 65_536],
        tail_log_mass: vec![log_prob; 100],
        ..SequenceLabels::default()
    };
    let writer = LabelWriter::create_or_resume(dir.path(), plan).unwrap();
    let mut shard = writer.shard(0).unwrap();
    (0..3).for_each(|first| shard.push(of(first)).unwrap());
    shard.commit().unwrap();
    writer.finish().unwrap();
    let dataset = LabelDataset::open(dir.path()).unwrap();
    assert_eq!(dataset.groups(), 2);
    assert_eq!(dataset.group_rows(1), 2..3);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn labels_round_trip(
        selection in selections(), rows in 1u64..20, rows_per_shard in 1u64..8, exact in any::<bool>(),
        row_group_tokens in 1u32..200, temperatures in prop_oneof![Just(vec![]), Just(vec![0.5, 2.0, 3.25])],
        leave_out in any::<[bool; 3]>(),
    ) {
        let mantissa_bits = if exact { 23 } else { 7 };
        let may_leave_out = [temperatures.is_empty(), selection.draws().is_none(), true];
        let omit = [OptionalColumn::LogSumExp, OptionalColumn::Entropy, OptionalColumn::GoldLogProb];
        let omit = omit.into_iter().zip(leave_out).zip(may_leave_out);
        let omit = omit.filter(|((_, leave_out), may)| *leave_out && *may).map(|((column, _), _)| column);
        let plan = LabelPlan {
            mantissa_bits, row_group_tokens, omit: omit.collect(),
            position_mantissa_bits: if exact { 23 } else { 9 },
            ..tempered(plan(LabelPlan::ranges(rows, rows_per_shard), selection), &temperatures)
        };
        // Whoever began a dataset without tails can go on with it.
        let plan = if leave_out[2] { LabelPlan { version: LabelPlan::VERSION, ..plan } } else { plan };
        let dir = tempfile::tempdir().unwrap();
        let manifest = write_dataset(dir.path(), &plan);
        let dataset = LabelDataset::open(dir.path()).unwrap();
        prop_assert_eq!(dataset.manifest(), &manifest);
        let written: Vec<_> = (0..plan.shards.len()).flat_map(|shard| shard_labels(&plan, shard)).collect();
        prop_assert_eq!(dataset.len(), written.len());
        for (row, written) in written.iter().enumerate() {
            let read = dataset.read(row).unwrap();
            prop_assert!(is_rounded(&read, written, &plan), "{read:?} {written:?}");
            prop_assert_eq!(dataset.key(row), written.key());
            prop_assert_eq!(dataset.get(&written.key()).unwrap().input_ids, read.input_ids);
            prop_assert_eq!(dataset.token_counts(row), (written.input_ids.len(), written.positions.len()));
        }
        let in_order: Vec<_> = dataset.iter().collect::<Result<_, _>>().unwrap();
        for (row, labels) in in_order.iter().enumerate() {
            prop_assert_eq!(&dataset.read(row).unwrap(), labels);
        }
        prop_assert_eq!(in_order.len(), written.len());
    }

    #[test]
    fn sequences_round_trip(rows in 1usize..30, per_shard in 1usize..12, seed in any::<u64>(), start in 0usize..30) {
        let dir = tempfile::tempdir().unwrap();
        let mut random = Random(seed);
        let sequences: Vec<_> = (0..rows).map(|_| sequence(&mut random, crate::common::VOCABULARY)).collect();
        let mut writer = SequenceWriter::create(dir.path(), crate::common::info(), per_shard).unwrap();
        for sequence in &sequences {
            writer.push(sequence.clone()).unwrap();
        }
        let manifest = writer.finish().unwrap();
        let dataset = SequenceDataset::open(dir.path()).unwrap();
        prop_assert_eq!(dataset.manifest(), &manifest);
        prop_assert_eq!(manifest.shards.len(), rows.div_ceil(per_shard));
        prop_assert_eq!(&dataset.read_all().unwrap(), &sequences);
        let start = start.min(rows);
        prop_assert_eq!(&dataset.read_range(start..rows).unwrap(), &sequences[start..]);
    }
}

#[test]
fn the_same_content_gives_the_same_bytes() {
    let plan = plan(LabelPlan::ranges(40, 16), TOP_4);
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write_dataset(one.path(), &plan);
    write_dataset(other.path(), &plan);
    assert_eq!(tree(one.path()), tree(other.path()));
}

#[test]
fn a_sequence_may_come_twice_and_the_first_is_found() {
    let plan = plan(vec![[0, 2]], TOP_4);
    let dir = tempfile::tempdir().unwrap();
    let writer = LabelWriter::create_or_resume(dir.path(), plan.clone()).unwrap();
    let first = labels(&mut Random(1), &plan);
    let second = SequenceLabels { source: Some("again".to_owned()), ..first.clone() };
    let mut shard = writer.shard(0).unwrap();
    shard.push(first.clone()).unwrap();
    shard.push(second).unwrap();
    shard.commit().unwrap();
    writer.finish().unwrap();
    let dataset = LabelDataset::open(dir.path()).unwrap();
    assert_eq!(dataset.len(), 2);
    assert_eq!(dataset.get(&first.key()).unwrap().source, first.source);
    assert_eq!(dataset.read(1).unwrap().source.as_deref(), Some("again"));
}

#[test]
fn rounding_costs_little() {
    let plan = LabelPlan { row_group_tokens: 4096, ..plan(vec![[0, 200]], Selection::TopK { k: 97 }) };
    let dir = tempfile::tempdir().unwrap();
    write_dataset(dir.path(), &plan);
    let dataset = LabelDataset::open(dir.path()).unwrap();
    let (mut kl_nats, mut tokens) = (0.0, 0.0);
    for (row, written) in shard_labels(&plan, 0).iter().enumerate() {
        let read = dataset.read(row).unwrap();
        for (exact, rounded) in written.log_probs.chunks(97).zip(read.log_probs.chunks(97)) {
            let total: f64 = rounded.iter().map(|value| f64::from(*value).exp()).sum();
            let terms = exact.iter().zip(rounded).map(|(p, q)| (f64::from(*p), f64::from(*q) - total.ln()));
            kl_nats += terms.map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
            tokens += 1.0;
        }
    }
    assert!(kl_nats / tokens < ROUNDING_KL, "{}", kl_nats / tokens);
}

/// Row groups of several pages, read row by row with other row groups in between, which is the way of a row alone.
#[test]
fn rows_alone_are_those_of_whole_row_groups() {
    let all = Selection::TopK { k: VOCABULARY };
    let plan = LabelPlan { row_group_tokens: 1500, ..tempered(plan(vec![[0, 900]], all), &[2.0]) };
    let dir = tempfile::tempdir().unwrap();
    write_dataset(dir.path(), &plan);
    let dataset = LabelDataset::open(dir.path()).unwrap();
    let in_order: Vec<_> = dataset.iter().collect::<Result<_, _>>().unwrap();
    assert!(dataset.groups() > 5, "{}", dataset.groups());
    let longest = (0..dataset.groups()).map(|group| dataset.group_rows(group).len()).max().unwrap();
    for row in 0..longest {
        for group in 0..dataset.groups() {
            if let Some(row) = dataset.group_rows(group).nth(row) {
                assert_eq!(dataset.read(row).unwrap(), in_order[row]);
            }
        }
    }
    let mut decoded = LabelGroup::default();
    for group in (0..dataset.groups()).rev() {
        dataset.decode_group(group, &mut decoded).unwrap();
        assert_eq!(decoded.len(), dataset.group_rows(group).len());
        for (within, row) in dataset.group_rows(group).enumerate() {
            assert_eq!(decoded.key(within), dataset.key(row));
            assert_eq!(decoded.row(within), LabelsView::from(&in_order[row]));
        }
    }
}

/// Where the exact entries hold all there is, nothing is drawn, and a list is empty.
#[test]
fn rows_without_draws_are_read() {
    let selection = Selection::TopKSampled { k: 4, draws: 9 };
    let plan = LabelPlan { row_group_tokens: 40, ..plan(vec![[0, 20]], selection) };
    let mut rows = shard_labels(&plan, 0);
    for row in rows.iter_mut().filter(|row| row.input_ids[0] % 3 > 0) {
        let entries: Vec<Vec<i32>> = row.entries().map(|here| here.token_ids[..4].to_vec()).collect();
        row.token_ids = entries.concat();
        row.counts.fill(4);
        row.sample_counts.clear();
        row.log_probs.fill(0.25f32.ln());
        row.tail_log_mass.fill(f32::NEG_INFINITY);
        row.gold_log_prob.fill(0.25f32.ln());
    }
    let dir = tempfile::tempdir().unwrap();
    let writer = LabelWriter::create_or_resume(dir.path(), plan.clone()).unwrap();
    let mut shard = writer.shard(0).unwrap();
    rows.iter().for_each(|row| shard.push(row.clone()).unwrap());
    shard.commit().unwrap();
    writer.finish().unwrap();
    let dataset = LabelDataset::open(dir.path()).unwrap();
    assert!(rows.iter().any(|row| row.sample_counts.is_empty()), "some rows have no draws");
    assert!(rows.iter().any(|row| !row.sample_counts.is_empty()), "some rows have draws");
    let in_order: Vec<_> = dataset.iter().collect::<Result<_, _>>().unwrap();
    for (index, row) in rows.iter().enumerate() {
        assert_eq!(in_order[index].sample_counts, row.sample_counts);
        assert_eq!(dataset.read(index).unwrap(), in_order[index]);
    }
}

/// The Parquet crate's own reader takes the other way through the file: levels, pages and encodings.
#[test]
fn another_reader_sees_the_same() {
    let plan = tempered(plan(vec![[0, 30]], Selection::TopP { p: 0.8, k: 9 }), &[1.5]);
    let dir = tempfile::tempdir().unwrap();
    let manifest = write_dataset(dir.path(), &plan);
    let dataset = LabelDataset::open(dir.path()).unwrap();
    let path = dir.path().join("data").join(&manifest.shards[0].file);
    let peer = SerializedFileReader::new(std::fs::File::open(path).unwrap()).unwrap();
    for (index, row) in peer.get_row_iter(None).unwrap().enumerate() {
        let (row, labels) = (row.unwrap(), dataset.read(index).unwrap());
        let list = |column: usize| row.get_list(column).unwrap().elements().to_vec();
        let ints = |values: &[i32]| values.iter().map(|value| Field::Int(*value)).collect::<Vec<_>>();
        let floats = |values: &[f32]| values.iter().map(|value| Field::Float(*value)).collect::<Vec<_>>();
        assert_eq!(row.get_bytes(0).unwrap().data(), labels.key().0);
        assert_eq!(row.get_string(1).ok(), labels.source.as_ref());
        assert_eq!(list(2), ints(&labels.input_ids));
        assert_eq!(list(3), ints(&labels.positions));
        assert_eq!(list(4), ints(&labels.counts));
        assert_eq!(list(5), ints(&labels.token_ids));
        assert_eq!(list(6), floats(&labels.log_probs));
        assert_eq!(list(7), floats(&labels.log_sum_exp));
        assert_eq!(list(8), floats(&labels.tail_log_mass));
        assert_eq!(list(9), floats(&labels.entropy));
        assert_eq!(list(10), floats(&labels.gold_log_prob));
        assert_eq!(list(11), floats(&labels.log_partitions[0]));
        assert_eq!(list(12), floats(&labels.tail_log_masses[0]));
    }
    let group = peer.metadata().row_group(0);
    for (index, column) in group.columns().iter().enumerate() {
        assert!(matches!(column.compression(), Compression::ZSTD(_)), "{index}");
        assert!(column.statistics().is_none() && column.offset_index_offset().is_none(), "{index}");
        let encodings: Vec<Encoding> = column.encodings().collect();
        let split = encodings.contains(&Encoding::BYTE_STREAM_SPLIT);
        assert_eq!(
            (split, column.dictionary_page_offset().is_some()),
            (![0, 1, 4].contains(&index), index == 4)
        );
    }
    let names: Vec<_> = group.columns().iter().map(|column| column.column_path().string()).collect();
    assert_eq!(names[5], "token_ids.list.element");
    assert_eq!(names[11], "log_partition_t1_5.list.element");
    assert_eq!(names[12], "tail_log_mass_t1_5.list.element");
}

/// Bytes of the files below `dir` that are in this process's memory.
#[cfg(target_os = "linux")]
fn mapped_bytes(dir: &std::path::Path) -> Option<usize> {
    let maps = fs_err::read_to_string("/proc/self/smaps").unwrap();
    let (mut ours, mut sum) = (false, None);
    for line in maps.lines() {
        match line.strip_prefix("Rss:") {
            Some(size) if ours => {
                let kilobytes: usize = size.trim().trim_end_matches(" kB").parse().unwrap();
                sum = Some(sum.unwrap_or(0) + 1024 * kilobytes);
            }
            None if line.ends_with(".parquet") => ours = line.contains(dir.to_str().unwrap()),
            None if !line.contains(": ") => ours = false,
            _ => {}
        }
    }
    sum
}

/// Covers the memory of a reader: what it has read of the files is given back, whether row groups or rows were asked for.
#[cfg(target_os = "linux")]
#[test]
fn mapped_pages_are_given_back() {
    let mut plan = plan(vec![[0, 4000], [4000, 8000]], TOP_4);
    plan.row_group_tokens = LabelPlan::DEFAULT_ROW_GROUP_TOKENS;
    let dir = tempfile::tempdir().unwrap();
    let manifest = write_dataset(dir.path(), &plan);
    let bytes: u64 = manifest.shards.iter().map(|shard| shard.bytes).sum();
    assert!(bytes > 1_000_000, "{bytes}");
    let dataset = LabelDataset::open(dir.path()).unwrap();
    let Some(opened) = mapped_bytes(dir.path()) else { return }; // not on a local disk
    // Of each shard a footer with the neighbours that the system maps on both sides: some 140 KB were seen.
    let little = 2 * 192 * 1024;
    assert!(opened <= little, "{opened} of {bytes}");
    let mut group = LabelGroup::default();
    for index in 0..dataset.groups() {
        dataset.decode_group(index, &mut group).unwrap();
    }
    assert!(mapped_bytes(dir.path()) <= Some(little));
    for row in (0..8000).step_by(501) {
        dataset.read(row).unwrap();
    }
    assert!(mapped_bytes(dir.path()) <= Some(little));
}
