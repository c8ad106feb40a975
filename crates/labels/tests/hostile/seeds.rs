//! The seed corpus of the fuzz targets, made from the format as it is: `SOFTSHARD_WRITE_SEEDS=1 cargo test --test hostile`
//! writes it, and without that variable a difference is a failure.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use parquet::basic::Encoding;
use parquet::column::reader::ColumnReader;
use parquet::data_type::{ByteArrayType, FixedLenByteArrayType, FloatType, Int32Type};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::writer::SerializedFileWriter;
use serde_json::{Value, json};
use softshard_labels::{LabelPlan, OptionalColumn, Selection, SequenceLabels};

use crate::common::{TOP_4, plan, shard_labels, tempered, write_dataset};
use crate::entry::rehash;

/// A dataset of one shard with one row group.
pub(crate) struct Good {
    plan: LabelPlan,
    pub(crate) manifest: Vec<u8>,
    pub(crate) plan_json: Vec<u8>,
    pub(crate) commit: Vec<u8>,
    pub(crate) shard: Vec<u8>,
}

impl Good {
    fn new(plan: LabelPlan) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let manifest = write_dataset(dir.path(), &plan);
        let read = |name: &str| fs_err::read(dir.path().join(name)).unwrap();
        let mut commit: Value = serde_json::from_slice(&read("_softshard/commits/00000.json")).unwrap();
        commit["attempt"] = json!("an attempt");
        Self {
            manifest: read("manifest.json"),
            plan_json: read("_softshard/plan.json"),
            commit: serde_json::to_vec_pretty(&commit).unwrap(),
            shard: read(&format!("data/{}", manifest.shards[0].file)),
            plan,
        }
    }

    /// What the shard holds, as it is read.
    pub(crate) fn labels(&self) -> Vec<SequenceLabels> {
        let dir = tempfile::tempdir().unwrap();
        write_dataset(dir.path(), &self.plan);
        let dataset = softshard_labels::LabelDataset::open(dir.path()).unwrap();
        let labels: Vec<_> = dataset.iter().collect::<Result<_, _>>().unwrap();
        assert_eq!(labels.len(), shard_labels(&self.plan, 0).len());
        labels
    }
}

fn one_group(selection: Selection) -> LabelPlan {
    LabelPlan { row_group_tokens: 4096, ..tempered(plan(vec![[0, 6]], selection), &[2.0]) }
}

pub(crate) static GOOD: LazyLock<Good> = LazyLock::new(|| Good::new(one_group(TOP_4)));
/// Labels without log-probabilities, and without the columns that may be left out.
pub(crate) static SAMPLED: LazyLock<Good> = LazyLock::new(|| {
    let omit = vec![OptionalColumn::LogSumExp, OptionalColumn::GoldLogProb];
    let plan = LabelPlan { omit, temperatures: Vec::new(), ..one_group(Selection::Sampled { draws: 20 }) };
    Good::new(plan)
});
/// Labels with both.
pub(crate) static MIXED: LazyLock<Good> =
    LazyLock::new(|| Good::new(one_group(Selection::TopKSampled { k: 3, draws: 9 })));

/// The same shard without compression, so that a changed byte is a changed level or value.
pub(crate) fn uncompressed(shard: &[u8]) -> Vec<u8> {
    let reader = SerializedFileReader::new(bytes::Bytes::copy_from_slice(shard)).unwrap();
    let metadata = reader.metadata().file_metadata();
    let mut properties = WriterProperties::builder()
        .set_dictionary_enabled(false)
        .set_statistics_enabled(EnabledStatistics::None)
        .set_offset_index_disabled(true)
        .set_encoding(Encoding::BYTE_STREAM_SPLIT)
        .set_key_value_metadata(metadata.key_value_metadata().cloned());
    for column in metadata.schema_descr().columns().iter().take(2) {
        properties = properties.set_column_encoding(column.path().clone(), Encoding::PLAIN);
    }
    let counts = metadata.schema_descr().column(4).path().clone();
    properties = properties
        .set_column_encoding(counts.clone(), Encoding::PLAIN)
        .set_column_dictionary_enabled(counts, true);
    let (schema, properties) = (metadata.schema_descr().root_schema_ptr(), Arc::new(properties.build()));
    let mut bytes = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, properties).unwrap();
    let (from, mut to) = (reader.get_row_group(0).unwrap(), writer.next_row_group().unwrap());
    for index in 0..from.num_columns() {
        let mut column = to.next_column().unwrap().unwrap();
        macro_rules! copy {
            ($reader:expr, $kind:ty) => {{
                let (mut values, mut defined, mut repeated) = (Vec::new(), Vec::new(), Vec::new());
                let (defs, reps) = (Some(&mut defined), Some(&mut repeated));
                $reader.read_records(usize::MAX, defs, reps, &mut values).unwrap();
                // Columns without levels have none, not empty ones.
                let [defined, repeated] =
                    [&defined, &repeated].map(|levels| (!levels.is_empty()).then_some(&levels[..]));
                column.typed::<$kind>().write_batch(&values, defined, repeated).unwrap();
            }};
        }
        match from.get_column_reader(index).unwrap() {
            ColumnReader::Int32ColumnReader(mut reader) => copy!(reader, Int32Type),
            ColumnReader::FloatColumnReader(mut reader) => copy!(reader, FloatType),
            ColumnReader::ByteArrayColumnReader(mut reader) => copy!(reader, ByteArrayType),
            ColumnReader::FixedLenByteArrayColumnReader(mut reader) => copy!(reader, FixedLenByteArrayType),
            _ => panic!("the format has no such column"),
        }
        column.close().unwrap();
    }
    to.close().unwrap();
    writer.close().unwrap();
    rehash(&mut bytes).expect("a shard has the hash of its row group");
    bytes
}

/// A file with nothing but this footer.
fn footer_only(footer: &[u8]) -> Vec<u8> {
    let size = u32::try_from(footer.len()).unwrap().to_le_bytes();
    [b"PAR1", footer, &size, b"PAR1"].concat()
}

/// Footers that ask the Parquet crate for memory or for a deep stack.
pub(crate) fn footer_bombs() -> [(&'static str, Vec<u8>); 5] {
    // Version 1; a schema of one element, its name and 2^31 - 1 children; then nothing.
    let children = [
        &[0x15, 2, 0x19, 0x1c, 0x48, 1, b'm', 0x15][..],
        &[0xfe, 0xff, 0xff, 0xff, 0x0f, 0, 0x16, 0, 0x19, 0x0c, 0],
    ];
    // A schema of groups with one child each, deeper than a stack.
    let level = [0x48, 1, b'm', 0x15, 2, 0];
    let levels = [&[0x15, 2, 0x19, 0xfc, 0xd0, 0x0f][..], &level.repeat(2000), &[0]];
    // Lists within lists in a field that nobody knows.
    let lists = [&[0xf9][..], &[0x19].repeat(60_000)];
    // 60,000 row groups of one byte each.
    let groups = [&[0x15, 2, 0x39, 0xfc, 0xe0, 0xd4, 0x03][..], &[0].repeat(60_000), &[0]];
    // The first again, behind a version that is a boolean: the Parquet crate takes its value for a number, and the next
    // field for the schema. The fuzzer found it.
    let types = [
        &[0x11, 2, 0x11, 0x1c, 0x48, 1, b'm', 0x15][..],
        &[0xfe, 0xff, 0xff, 0xff, 0x0f, 0, 0x13, 0, 0, 0, 0],
    ];
    [
        ("types.parquet", footer_only(&types.concat())),
        ("children.parquet", footer_only(&children.concat())),
        ("levels.parquet", footer_only(&levels.concat())),
        ("lists.parquet", footer_only(&lists.concat())),
        ("groups.parquet", footer_only(&groups.concat())),
    ]
}

fn corpus() -> BTreeMap<String, Vec<u8>> {
    let top_p = Good::new(one_group(Selection::TopP { p: 0.7, k: 9 }));
    let text = |text: &str| text.as_bytes().to_vec();
    let mut traversal: Value = serde_json::from_slice(&GOOD.manifest).unwrap();
    traversal["shards"][0]["file"] = json!("../../../../etc/passwd");
    let mut corpus: BTreeMap<String, Vec<u8>> = [
        ("manifest/good.json", GOOD.manifest.clone()),
        ("manifest/top_p.json", top_p.manifest),
        ("manifest/sampled.json", SAMPLED.manifest.clone()),
        ("manifest/top_k_sampled.json", MIXED.manifest.clone()),
        ("manifest/traversal.json", serde_json::to_vec(&traversal).unwrap()),
        ("manifest/torn.json", GOOD.manifest[..GOOD.manifest.len() / 2].to_vec()),
        ("manifest/nested.json", text(&"[".repeat(500))),
        ("plan/good.json", GOOD.plan_json.clone()),
        ("plan/top_p.json", top_p.plan_json),
        ("plan/sampled.json", SAMPLED.plan_json.clone()),
        ("plan/top_k_sampled.json", MIXED.plan_json.clone()),
        ("plan/torn.json", GOOD.plan_json[..GOOD.plan_json.len() / 2].to_vec()),
        ("commit/good.json", GOOD.commit.clone()),
        ("commit/empty.json", text("{}")),
        ("shard_open/good.parquet", GOOD.shard.clone()),
        ("shard_open/uncompressed.parquet", uncompressed(&GOOD.shard)),
        ("shard_open/sampled.parquet", uncompressed(&SAMPLED.shard)),
        ("shard_open/top_k_sampled.parquet", uncompressed(&MIXED.shard)),
        ("shard_open/empty.parquet", text("PAR1PAR1")),
    ]
    .map(|(name, bytes)| (name.to_owned(), bytes))
    .into();
    // Short ones: long runs of one byte say no more.
    for (name, bytes) in footer_bombs().into_iter().filter(|(_, bytes)| bytes.len() < 20_000) {
        corpus.insert(format!("shard_open/{name}"), bytes);
    }
    corpus
}

#[test]
fn the_seed_corpus_is_of_this_format() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let corpus = corpus();
    let bytes: usize = corpus.values().map(Vec::len).sum();
    assert!(bytes < 200_000, "{bytes} bytes");
    for (name, bytes) in corpus {
        let path = folder.join(name);
        if std::env::var_os("SOFTSHARD_WRITE_SEEDS").is_some() {
            fs_err::write(path, bytes).unwrap();
        } else {
            assert!(fs_err::read(&path).is_ok_and(|found| found == bytes), "{} differs", path.display());
        }
    }
}
