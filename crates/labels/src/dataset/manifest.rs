//! Manifests: written last, so a manifest means a finished dataset.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::plan::LabelPlan;
use super::provenance::Provenance;
use crate::host::{Links, name_of, regular};
use crate::shard::{LABELS, SEQUENCES, ShardRecord, check_record, totals};
use crate::values::{Error, HINT_DAMAGED, ReadLimits, Tokenizer, json, quoted};

/// `manifest.json` of a label dataset.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LabelsManifest {
    /// Always `softshard-labels`.
    #[schemars(extend("const" = LabelsManifest::FORMAT))]
    pub format: String,
    /// Version of the format: that of the plan.
    #[schemars(range(min = LabelPlan::VERSION, max = LabelPlan::NEWEST_VERSION))]
    pub version: u32,
    /// BLAKE3 of `_softshard/plan.json`, hexadecimal; every shard carries it.
    #[schemars(regex(pattern = "^[0-9a-f]{64}$"))]
    pub plan_blake3: String,
    /// The plan itself: tokenizer, template, teacher, selection.
    pub plan: LabelPlan,
    /// Sequences in all.
    pub rows: u64,
    /// Tokens of the sequences in all.
    pub input_tokens: u64,
    /// Labelled positions in all.
    pub labelled_tokens: u64,
    /// The data files, by shard index.
    #[schemars(length(min = 1))]
    pub shards: Vec<ShardRecord>,
}

/// `manifest.json` of a sequence dataset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(transform = requires_provenance)]
pub struct SequencesManifest {
    /// Always `softshard-sequences`.
    #[schemars(extend("const" = SequencesManifest::FORMAT))]
    pub format: String,
    /// Version of the format.
    #[schemars(extend("const" = SequencesManifest::VERSION))]
    pub version: u32,
    /// Where the sequences come from.
    pub info: SequencesInfo,
    /// What they were made from; not in datasets of version 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Provenance")]
    pub provenance: Option<Provenance>,
    /// Sequences in all.
    pub rows: u64,
    /// Tokens in all.
    pub input_tokens: u64,
    /// Positions of the loss masks in all.
    pub labelled_tokens: u64,
    /// The data files, in order.
    #[schemars(length(min = 1))]
    pub shards: Vec<ShardRecord>,
}

/// Where sequences come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SequencesInfo {
    /// The tokenizer that made the ids.
    pub tokenizer: Tokenizer,
    /// Name of the prompt template.
    pub template: String,
    /// The split, as `train`.
    #[schemars(regex(pattern = super::plan::SPLIT))]
    pub split: String,
    /// Seed of every random choice.
    pub seed: u64,
}

impl LabelsManifest {
    /// Format name of the manifest and of the shards.
    pub const FORMAT: &'static str = LABELS;
    /// The newest version of the manifest and of the shards; each has that of its plan.
    pub const NEWEST_VERSION: u32 = LabelPlan::NEWEST_VERSION;

    /// The manifest of a finished dataset and its BLAKE3, hexadecimal; no shard is read.
    ///
    /// # Errors
    /// [`Error::Bad`] where there is none, or one that contradicts itself; I/O.
    pub fn load(dir: impl AsRef<Path>) -> Result<(Self, String), Error> {
        let (manifest, bytes) = load_labels(dir.as_ref(), &ReadLimits::default())?;
        Ok((manifest, blake3::hash(&bytes).to_hex().to_string()))
    }
}

impl SequencesManifest {
    /// Format name of the manifest and of the shards.
    pub const FORMAT: &'static str = SEQUENCES;
    /// Version of the manifest and of the shards; version 1, without provenance and examples, is read too.
    pub const VERSION: u32 = 2;
}

/// The published schema is that of the version that is written.
fn requires_provenance(schema: &mut schemars::Schema) {
    if let Some(serde_json::Value::Array(required)) = schema.get_mut("required") {
        required.push("provenance".into());
    }
}

/// Reads `manifest.json` and gives its bytes.
pub(crate) fn read_manifest(dir: &Path) -> Result<(PathBuf, Vec<u8>), Error> {
    let path = dir.join("manifest.json");
    match fs_err::symlink_metadata(&path) {
        Ok(metadata) if metadata.is_file() => regular::read(&path, Links::Refused).map(|bytes| (path, bytes)),
        Ok(metadata) => Err(Error::bad(quoted(&path), "a regular file", name_of(metadata.file_type()))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let hint = "the dataset is not finished, or this is not a dataset: run the stage that writes it";
            Err(Error::bad(quoted(dir), "a finished dataset", "no manifest.json").hint(hint))
        }
        Err(error) => Err(error.into()),
    }
}

/// Reads and parses the manifest of a finished label dataset, and checks what it says about itself; gives its bytes too.
pub(crate) fn load_labels(dir: &Path, limits: &ReadLimits) -> Result<(LabelsManifest, Vec<u8>), Error> {
    let (path, bytes) = read_manifest(dir)?;
    Ok((parse_labels(&path, &bytes, limits)?, bytes))
}

/// As [`load_labels`], of a manifest that lies elsewhere.
pub(crate) fn load_labels_file(path: &Path, limits: &ReadLimits) -> Result<(LabelsManifest, Vec<u8>), Error> {
    let bytes = regular::read(path, Links::Followed)?;
    Ok((parse_labels(path, &bytes, limits)?, bytes))
}

/// Parses a manifest, and checks what it says about itself.
pub(crate) fn parse_labels(path: &Path, bytes: &[u8], limits: &ReadLimits) -> Result<LabelsManifest, Error> {
    let manifest: LabelsManifest =
        json::parse(path, bytes, LabelsManifest::FORMAT, LabelsManifest::NEWEST_VERSION)?;
    check_manifest(path, &manifest, limits)?;
    Ok(manifest)
}

/// Lists that a reader is willing to go through.
pub(crate) fn check_sizes(path: &Path, manifest: &LabelsManifest, limits: &ReadLimits) -> Result<(), Error> {
    let shards = manifest.shards.len().max(manifest.plan.shards.len());
    if shards > limits.shards {
        return Err(Error::bad(quoted(path), format_args!("at most {} shards", limits.shards), shards));
    }
    Ok(())
}

/// What the manifest says about itself.
pub(crate) fn check_manifest(
    path: &Path,
    manifest: &LabelsManifest,
    limits: &ReadLimits,
) -> Result<(), Error> {
    let place = quoted(path);
    check_sizes(path, manifest, limits)?;
    manifest.plan.validate().map_err(|error| error.within(&place))?;
    if manifest.version != manifest.plan.version {
        let expected = format!("version {}", manifest.plan.version);
        return Err(Error::bad(place, expected, manifest.version));
    }
    let plan_blake3 = manifest.plan.blake3();
    if manifest.plan_blake3 != plan_blake3 {
        return Err(Error::bad(format_args!("{place} plan_blake3"), plan_blake3, &manifest.plan_blake3));
    }
    let (planned, found) = (manifest.plan.shards.len(), manifest.shards.len());
    if planned != found {
        return Err(
            Error::bad(place, format_args!("the {planned} shards of the plan"), found).hint(HINT_DAMAGED)
        );
    }
    for (index, ([start, end], shard)) in manifest.plan.shards.iter().zip(&manifest.shards).enumerate() {
        if shard.rows != end - start {
            let place = format!("{place} shard {index}");
            return Err(Error::bad(place, format_args!("{} rows, as planned", end - start), shard.rows));
        }
    }
    let sums = [manifest.rows, manifest.input_tokens, manifest.labelled_tokens];
    if totals(&manifest.shards) != Some(sums) {
        return Err(Error::bad(
            place,
            "rows and tokens that are the sums of the shards",
            format_args!("{sums:?}"),
        ));
    }
    let [_, most] = manifest.plan.limits().entries_per_position;
    if usize::try_from(most).map_or(true, |most| most > limits.entries_per_position) {
        let expected = format!("at most {} entries per position", limits.entries_per_position);
        return Err(Error::bad(place, expected, most));
    }
    Ok(())
}

/// Checks that the manifest's names are those that its hashes and order give, and that `data/` holds just these.
pub(crate) fn check_files(
    dir: &Path,
    stem: &str,
    shards: &[ShardRecord],
    limits: &ReadLimits,
) -> Result<(), Error> {
    check_records(&dir.join("manifest.json"), stem, shards, limits)?;
    folder_problems(&dir.join("data"), shards)?.into_iter().next().map_or(Ok(()), Err)
}

/// Checks that the manifest's names are those that its hashes and order give.
pub(crate) fn check_records(
    manifest: &Path,
    stem: &str,
    shards: &[ShardRecord],
    limits: &ReadLimits,
) -> Result<(), Error> {
    let manifest = quoted(manifest);
    if shards.len() > limits.shards {
        return Err(Error::bad(manifest, format_args!("at most {} shards", limits.shards), shards.len()));
    }
    let mut records = shards.iter().enumerate();
    records.try_for_each(|(index, shard)| check_record(&manifest, stem, (index, shards.len()), shard))
}

/// Every file that the folder lacks or should not hold, and every one that is a link or a folder.
pub(crate) fn folder_problems(data: &Path, shards: &[ShardRecord]) -> Result<Vec<Error>, Error> {
    let metadata = fs_err::symlink_metadata(data)?;
    if !metadata.is_dir() {
        return Ok(vec![Error::bad(quoted(data), "a folder", "a link or a file")]);
    }
    let mut missing: BTreeSet<&str> = shards.iter().map(|shard| shard.file.as_str()).collect();
    let mut problems = Vec::new();
    for entry in fs_err::read_dir(data)? {
        let entry = entry?;
        if !entry.file_name().to_str().is_some_and(|name| missing.remove(name)) {
            let found = format!("`{}`", entry.file_name().to_string_lossy());
            let expected = "only the shards of the manifest";
            problems.push(Error::bad(quoted(data), expected, found).hint(HINT_DAMAGED));
        } else if !entry.file_type()?.is_file() {
            let found = name_of(entry.file_type()?);
            problems.push(Error::bad(quoted(&entry.path()), "a regular file", found));
        }
    }
    let lacks = |name| Error::bad(quoted(data), format_args!("shard `{name}`"), "none").hint(HINT_DAMAGED);
    problems.extend(missing.into_iter().map(lacks));
    Ok(problems)
}
