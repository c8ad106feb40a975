//! `softshard teacher-labels`: the stage.

use std::path::Path;

use anyhow::Result;
use clap::Args;
use softshard_labels::{Artefact, Provenance, SequenceDataset, Split};
use softshard_share::Writers;
use softshard_teacher::{Part, Teacher, TeacherInputs};

use crate::{
    cluster::Task,
    devices,
    doors::{self, Accept},
    labelling_summary::Told,
    recipe::{Recipe, RecipeError},
    session::Session,
    stage::{Stage, positive},
};

/// Arguments of `teacher-labels`.
#[derive(Args)]
pub(crate) struct TeacherLabels {
    /// The run
    #[command(flatten)]
    stage: Stage,
    /// What is taken though it differs
    #[command(flatten)]
    accept: Accept,
    /// Label only the shards of one of several processes: which one, from 0 on, or `auto` as the scheduler says;
    /// `labels finalize` ends the dataset
    #[arg(long, value_name = "I", requires = "of")]
    task: Option<Task>,
    /// How many processes there are
    #[arg(long, value_name = "N", requires = "task", value_parser = positive)]
    of: Option<usize>,
    /// Price of a device for an hour, in any currency: what the rest of the corpus will cost is said at the end
    #[arg(long, value_name = "PRICE")]
    price_per_hour: Option<f64>,
}

/// Labels every split that the recipe labels, or a part of its shards.
pub(crate) fn teacher_labels(options: &TeacherLabels, session: &Session) -> Result<()> {
    let TeacherLabels { stage, accept, task, of, price_per_hour } = options;
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
    let tokenizer = recipe.tokenizer_for(&config.model)?;
    let (splits, valid) = (recipe.labelled_splits(), recipe.sequences(Split::Valid));
    let mut accepted = Vec::new();
    // All of them, before the first is labelled; `valid` is read for the temperature even where it is not.
    for split in Split::ALL.into_iter().filter(|split| *split == Split::Valid || splits.contains(split)) {
        if splits.contains(&split) {
            SequenceDataset::manifest_of(recipe.sequences(split))?;
        }
        accepted.extend(doors::sequences(&recipe, &recipe.sequences(split), accept)?);
    }
    let mut teacher = Teacher::new(config, &devices);
    let labels = recipe.labels_output(if part.is_some() { Writers::Many } else { Writers::One })?;
    let observer = session.recording(recipe.output.labelling_metrics("teacher-labels", part), None);
    for split in splits {
        let (sequences, split) = (recipe.sequences(split), split.name());
        let output = labels.join(split);
        let inputs = TeacherInputs {
            labels: &recipe.labels,
            sequences: &sequences,
            held_out: Some(&valid),
            tokenizer: &tokenizer,
            output: &output,
            part,
            stop: session.stop,
            observer: &observer,
        };
        let summary = softshard_teacher::run(&mut teacher, &inputs)?;
        let device = &stage.device;
        print!("{}", Told { split, summary: &summary, device, price_per_hour: *price_per_hour });
        println!("labels: {output}");
    }
    drop(observer);
    if !accepted.is_empty() {
        let mut made_from = Provenance::new(Artefact::Labels);
        made_from.accept(accepted);
        labels.write(Provenance::FILE, &made_from.to_json())?;
    }
    recipe.write_beside_labels(&labels)
}
