//! `softshard teacher-labels`: the stage.

use std::{path::Path, sync::atomic::AtomicBool};

use anyhow::Result;
use softshard_share::Writers;
use softshard_teacher::{Part, Teacher, TeacherInputs};

use crate::{
    arguments::TeacherLabels,
    cluster::Task,
    commands::tokenizer_for,
    devices,
    labelling_summary::Told,
    metrics::Recorder,
    recipe::{Recipe, RecipeError},
};

/// Labels every split that was prepared, or a part of its shards.
pub(crate) fn teacher_labels(options: &TeacherLabels, stop: &AtomicBool) -> Result<()> {
    let TeacherLabels { stage, task, of, price_per_hour } = options;
    let recipe = Recipe::load(&stage.recipe, &stage.overrides)?;
    let config = Recipe::section(recipe.teacher.as_ref(), "teacher", "teacher-labels")?;
    let task = task.as_ref().map(Task::number).transpose()?;
    let part = task.zip(*of).map(|(task, of)| Part { task, of });
    if let Some(Part { task, of }) = part.filter(|part| part.task >= part.of) {
        let message = format!("`--task`: expected a number below `--of {of}`, found {task}");
        return Err(RecipeError(message).into());
    }
    let devices = devices::open(&stage.device)?;
    let is_finetuned = |path: &Path| path.starts_with(&recipe.output.teacher);
    if recipe.finetune.is_some()
        && !config.adapter.iter().chain([&config.model]).any(|path| is_finetuned(path))
    {
        tracing::warn!(
            "[finetune] makes `{}`, but [teacher] names another model",
            recipe.output.teacher.display()
        );
    }
    let tokenizer = tokenizer_for(&recipe, &config.model)?;
    let held_out = recipe.output.sequences.join("valid");
    let mut teacher = Teacher::new(config, &devices);
    let labels = recipe.labels_output(if part.is_some() { Writers::Many } else { Writers::One })?;
    let metrics = Recorder::start(recipe.output.labelling_metrics("teacher-labels", part));
    for split in ["train", "valid"] {
        let sequences = recipe.output.sequences.join(split);
        if split == "valid" && !sequences.exists() {
            continue; // nothing was held out
        }
        let output = labels.join(split);
        let inputs = TeacherInputs {
            labels: &recipe.labels,
            sequences: &sequences,
            held_out: Some(&held_out),
            tokenizer: &tokenizer,
            output: &output,
            part,
            stop,
        };
        let summary = softshard_teacher::run(&mut teacher, &inputs)?;
        let device = &stage.device;
        print!("{}", Told { split, summary: &summary, device, price_per_hour: *price_per_hour });
        println!("labels: {output}");
    }
    drop(metrics);
    recipe.write_beside_labels(&labels)
}
