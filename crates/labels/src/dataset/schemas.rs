//! The published schemas, made from the types: what `schemas/` holds, and another language's reader may rely on.

use std::collections::BTreeMap;

use parquet::basic::{LogicalType, Type as PhysicalType};
use parquet::schema::printer::print_schema;
use parquet::schema::types::{Type, TypePtr};
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use schemars::transform::RecursiveTransform;

use super::commit::CommitFile;
use super::manifest::{LabelsManifest, SequencesManifest};
use super::plan::{LabelPlan, TeacherIdentity};
use super::provenance::Provenance;
use crate::shard::{ShardSchema, partition_column, tail_column};
use crate::values::{Example, OptionalColumn, Selection, Tokenizer};

/// A published schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schema {
    /// What it is called, as `labels.parquet` or `plan`.
    pub name: &'static str,
    /// The name of its file, as `labels.parquet.txt` or `plan.schema.json`.
    pub file: String,
    /// What its file holds.
    pub text: String,
}

impl Schema {
    /// The schemas of this crate's formats: Parquet and Arrow of the shards, and JSON Schemas of the small files.
    pub fn all() -> Vec<Self> {
        let (labels, sequences) =
            (label_shards(&ALL_COLUMNS, &[]), ShardSchema::sequences(SequencesManifest::VERSION));
        vec![
            Self::text("labels.parquet", label_notes() + &parquet(&labels)),
            Self::text("labels.arrow", label_notes() + &arrow(&labels)),
            Self::text("sequences.parquet", parquet(&sequences.message)),
            Self::text("sequences.arrow", arrow(&sequences.message)),
            Self::written::<LabelsManifest>("labels-manifest"),
            Self::written::<SequencesManifest>("sequences-manifest"),
            Self::written::<LabelPlan>("plan"),
            Self::written::<CommitFile>("commit"),
            Self::written::<Provenance>("provenance"),
            Self::written::<Example>("example"),
        ]
    }

    /// JSON Schema of what people write and a program reads: keys that have a default may be left out.
    pub fn read<T: JsonSchema>(name: &'static str) -> Self {
        Self::json::<T>(name, SchemaSettings::draft2020_12().for_deserialize())
    }

    /// JSON Schema of what a program writes: every key is there.
    fn written<T: JsonSchema>(name: &'static str) -> Self {
        Self::json::<T>(name, SchemaSettings::draft2020_12().for_serialize())
    }

    fn json<T: JsonSchema>(name: &'static str, settings: SchemaSettings) -> Self {
        let settings = settings.with_transform(RecursiveTransform(plain_description));
        let schema = settings.into_generator().into_root_schema_for::<T>();
        let text = serde_json::to_string_pretty(&schema).expect("a schema is JSON");
        Self { name, file: format!("{name}.schema.json"), text: text + "\n" }
    }

    fn text(name: &'static str, text: String) -> Self {
        Self { name, file: format!("{name}.txt"), text }
    }
}

/// A description without the code of its documentation, and without line breaks inside of a sentence.
fn plain_description(schema: &mut schemars::Schema) {
    if let Some(serde_json::Value::String(text)) = schema.get_mut("description") {
        let prose = text.split("```").next().unwrap_or_default().trim();
        *text = prose
            .split("\n\n")
            .map(|paragraph| paragraph.replace('\n', " "))
            .collect::<Vec<_>>()
            .join("\n\n");
    }
}

/// A selection whose shards have every column.
const ALL_COLUMNS: Selection = Selection::TopKSampled { k: 1, draws: 1 };
/// The other ones.
const SELECTIONS: [(&str, Selection); 3] = [
    ("top_k", Selection::TopK { k: 1 }),
    ("top_p", Selection::TopP { p: 1.0, k: 1 }),
    ("sampled", Selection::Sampled { draws: 1 }),
];
/// What a plan may leave out.
const OPTIONAL: [OptionalColumn; 3] =
    [OptionalColumn::LogSumExp, OptionalColumn::Entropy, OptionalColumn::GoldLogProb];
/// The extra temperature of the schema that is shown.
const TEMPERATURE: f32 = 2.0;

/// Columns of label shards of a selection, without some.
fn label_shards(selection: &Selection, omit: &[OptionalColumn]) -> TypePtr {
    let plan = LabelPlan {
        format: LabelPlan::FORMAT.to_owned(),
        version: LabelPlan::version_of(selection, &[TEMPERATURE]),
        sequences: String::new(),
        shards: LabelPlan::ranges(1, 1),
        split: String::new(),
        tokenizer: Tokenizer {
            vocabulary_blake3: String::new(),
            vocab_size: 1,
            special_ids: BTreeMap::new(),
            normalizer_blake3: String::new(),
            chat_template_blake3: None,
            merges_blake3: None,
        },
        template: String::new(),
        teacher: TeacherIdentity {
            config_blake3: String::new(),
            weights_blake3: String::new(),
            adapter_blake3: None,
            dtype: String::new(),
            vocab_size: 1,
            altered: None,
        },
        selection: selection.clone(),
        mantissa_bits: LabelPlan::DEFAULT_MANTISSA_BITS,
        position_mantissa_bits: LabelPlan::DEFAULT_POSITION_MANTISSA_BITS,
        omit: omit.to_vec(),
        temperatures: vec![TEMPERATURE],
        seed: 0,
        row_group_tokens: LabelPlan::DEFAULT_ROW_GROUP_TOKENS,
    };
    plan.shard_schema().message
}

/// Which columns are not always there.
fn label_notes() -> String {
    let all = label_shards(&ALL_COLUMNS, &[]);
    let missing = |here: &Type| -> String {
        let is_here = |name: &str| here.get_fields().iter().any(|field| field.name() == name);
        let names = all.get_fields().iter().map(|field| field.name()).filter(|name| !is_here(name));
        names.collect::<Vec<_>>().join(", ")
    };
    let mut notes = String::from("# Every column of label shards, in this order.\n");
    for (kind, selection) in SELECTIONS {
        let names = missing(&label_shards(&selection, &[]));
        notes += &format!("# Not there with the selection `{kind}`: {names}.\n");
    }
    let names = missing(&label_shards(&ALL_COLUMNS, &OPTIONAL));
    notes += &format!("# Not there where the plan's `omit` names it: {names}.\n");
    let names = [partition_column(TEMPERATURE), tail_column(TEMPERATURE)];
    notes += &format!(
        "# One for each of the plan's `temperatures`, as here for 2: {}; 1.5 is written t1_5.\n",
        names.join(", ")
    );
    notes += &format!("# Not there in version 1: {}.\n", names[1]);
    notes
}

/// As parquet tools print it.
fn parquet(message: &Type) -> String {
    let mut text = Vec::new();
    print_schema(&mut text, message);
    String::from_utf8(text).expect("the printer writes text")
}

/// As pyarrow prints what it reads.
fn arrow(message: &Type) -> String {
    let mut text = String::new();
    for field in message.get_fields() {
        let null = if field.is_optional() { "" } else { " not null" };
        if field.is_group() {
            let element = &field.get_fields()[0].get_fields()[0];
            let element = format!("{}: {} not null", element.name(), arrow_type(element));
            text += &format!("{}: list<{element}>{null}\n  child 0, {element}\n", field.name());
        } else {
            text += &format!("{}: {}{null}\n", field.name(), arrow_type(field));
        }
    }
    text
}

fn arrow_type(primitive: &Type) -> &'static str {
    match (primitive.get_physical_type(), primitive.get_basic_info().logical_type_ref()) {
        (PhysicalType::INT32, None) => "int32",
        (PhysicalType::FLOAT, None) => "float",
        (PhysicalType::BYTE_ARRAY, Some(LogicalType::String)) => "string",
        (PhysicalType::FIXED_LEN_BYTE_ARRAY, None) => "fixed_size_binary[16]",
        (physical, logical) => unreachable!("no column of ours is {physical} {logical:?}"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_those_of_the_files_and_each_comes_once() {
        let schemas = Schema::all();
        for schema in &schemas {
            assert!(schema.file.starts_with(&format!("{}.", schema.name)), "{}", schema.file);
            assert!(schema.text.ends_with('\n'), "{}", schema.file);
        }
        let names: BTreeSet<&str> = schemas.iter().map(|schema| schema.name).collect();
        assert_eq!(names.len(), schemas.len());
    }

    #[test]
    fn the_files_that_are_written_refuse_unknown_keys_and_lack_none() {
        for schema in Schema::all().into_iter().filter(|schema| schema.file.ends_with(".json")) {
            let schema: serde_json::Value = serde_json::from_str(&schema.text).unwrap();
            let objects = schema["$defs"].as_object().into_iter().flatten().map(|(_, object)| object);
            for object in objects.chain([&schema]).filter(|object| object["type"] == "object") {
                assert_eq!(object["additionalProperties"], false, "{object:#}");
                // Plans that were written before teachers could be altered, and merges were compared, are plans.
                let properties = object["properties"].as_object().unwrap().keys();
                assert_eq!(
                    object["required"].as_array().unwrap().len(),
                    properties.filter(|name| !["altered", "merges_blake3"].contains(&name.as_str())).count()
                );
            }
        }
    }
}
