//! What makes two labellings the same: the plan, from the recipe, the sequences and the teacher's files.

use anyhow::Result;
use softshard_labels::{LabelPlan, SequenceDataset, TeacherIdentity};

use crate::config::LabelsConfig;

/// The plan of labelling `sequences` by `teacher`.
pub(crate) fn plan(
    teacher: TeacherIdentity,
    labels: &LabelsConfig,
    sequences: &SequenceDataset,
) -> Result<LabelPlan> {
    let info = &sequences.manifest().info;
    Ok(LabelPlan {
        format: LabelPlan::FORMAT.to_owned(),
        version: LabelPlan::version_of(&labels.selection, &labels.temperatures),
        sequences: sequences.manifest_blake3().to_owned(),
        shards: LabelPlan::ranges(sequences.manifest().rows, u64::try_from(labels.sequences_per_shard)?),
        split: info.split.clone(),
        tokenizer: info.tokenizer.clone(),
        template: info.template.clone(),
        teacher,
        selection: labels.selection.clone(),
        mantissa_bits: labels.mantissa_bits,
        position_mantissa_bits: labels.position_mantissa_bits,
        omit: labels.omit.clone(),
        temperatures: labels.temperatures.clone(),
        seed: info.seed,
        row_group_tokens: LabelPlan::DEFAULT_ROW_GROUP_TOKENS,
    })
}
